"""Train a model to recall a phone book with transformers and PEFT: `compute_loss_func` sets the loss to MemFT."""

from tempfile import mkdtemp

import peft
import transformers

import memlaw
from memlaw.data import encode
from memlaw.data.load import load_memory_set
from memlaw.integrations.transformers import MemFTLoss, RecallCallback
from memlaw.model.reach import reachable_ids

# The bundled base and a generated phone book; for your own: memlaw.load("Qwen/Qwen3-8B"), memlaw.read("facts.jsonl").
base = memlaw.load()
facts = load_memory_set("task:phonebook:tokens=90,seed=0", base.tokenizer, lambda: reachable_ids(base))

# Only targets are trained, so prompts get the label -100.
rows = [
    {"input_ids": list(fact.ids), "labels": [-100] * fact.prompt_length + list(fact.target)}
    for fact in encode(facts, base.tokenizer, context=base.context)
]

transformers.set_seed(0)
lora = peft.LoraConfig(r=16, lora_alpha=64, target_modules=["down_proj"], task_type="CAUSAL_LM")
model = peft.get_peft_model(base.model, lora)
before = memlaw.recall(model, base.tokenizer, facts)

trainer = transformers.Trainer(
    model=model,
    args=transformers.TrainingArguments(
        output_dir=mkdtemp(),
        max_steps=300,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=2,  # the gradient is that of all 8 records at once
        learning_rate=1e-2,
        report_to="none",
        save_strategy="no",
    ),
    train_dataset=rows,
    data_collator=transformers.DataCollatorForSeq2Seq(base.tokenizer),
    processing_class=base.tokenizer,
    compute_loss_func=MemFTLoss("ot"),
    callbacks=[RecallCallback(facts, every=10)],  # stops once all records are certified
)
trainer.train()

after = memlaw.recall(model, base.tokenizer, facts)
print(f"exact match {before.acc_em:.0%} -> {after.acc_em:.0%} in {trainer.state.global_step} steps,", end=" ")
print(f"{after.certified} of {after.records} records certified")
