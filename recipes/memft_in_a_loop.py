"""Train a model to recall a phone book in your own loop, with MemFT exact over the micro-batches of a step."""

import peft
import torch
import transformers
from torch.utils.data import DataLoader

import memlaw
from memlaw.data import encode
from memlaw.data.load import load_memory_set
from memlaw.losses import EPS, memft_sums
from memlaw.model.reach import reachable_ids

base = memlaw.load()
facts = load_memory_set("task:phonebook:tokens=90,seed=0", base.tokenizer, lambda: reachable_ids(base))
rows = [
    {"input_ids": list(fact.ids), "labels": [-100] * fact.prompt_length + list(fact.target)}
    for fact in encode(facts, base.tokenizer, context=base.context)
]
loader = DataLoader(rows, batch_size=4, shuffle=True, collate_fn=transformers.DataCollatorForSeq2Seq(base.tokenizer))

torch.manual_seed(0)
model = peft.get_peft_model(base.model, peft.LoraConfig(r=16, lora_alpha=64, target_modules=["down_proj"]))
optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2, weight_decay=0)
before = report = memlaw.recall(model, base.tokenizer, facts)

for step in range(1, 301):
    weight = 0.0
    for batch in loader:  # one optimizer step: the whole phone book, in two micro-batches
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        part = memft_sums(logits, batch["labels"], method="ot")
        part.weighted.backward()
        weight += part.weight.item()
    for parameter in model.parameters():
        if parameter.grad is not None:
            parameter.grad /= weight + EPS  # known only now: the weight of the whole step
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()
    if step % 10 == 0:
        report = memlaw.recall(model, base.tokenizer, facts)
        if report.certified == report.records:
            break

print(f"exact match {before.acc_em:.0%} -> {report.acc_em:.0%} in {step} steps,", end=" ")
print(f"{report.certified} of {report.records} records certified")
