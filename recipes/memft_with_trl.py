"""Train a model to recall a phone book with TRL and PEFT: one call sets the loss of an SFTTrainer to MemFT."""

from tempfile import mkdtemp

import datasets
import peft
import trl

import memlaw
from memlaw.data.load import load_memory_set
from memlaw.integrations.transformers import watch_recall
from memlaw.integrations.trl import memft
from memlaw.model.reach import reachable_ids

# The bundled base and a generated phone book; for your own: memlaw.load("Qwen/Qwen3-8B"), memlaw.read("facts.jsonl").
base = memlaw.load()
facts = load_memory_set("task:phonebook:tokens=90,seed=0", base.tokenizer, lambda: reachable_ids(base))
before = memlaw.recall(base.model, base.tokenizer, facts)

trainer = trl.SFTTrainer(
    model=base.model,
    args=trl.SFTConfig(
        output_dir=mkdtemp(),
        max_steps=300,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=2,  # the gradient is that of all 8 records at once
        learning_rate=1e-2,
        bf16=False,
        report_to="none",
        save_strategy="no",
        seed=0,
    ),
    train_dataset=datasets.Dataset.from_list([{"prompt": f.prompt, "completion": f.target} for f in facts.facts]),
    processing_class=base.tokenizer,
    peft_config=peft.LoraConfig(r=16, lora_alpha=64, target_modules=["down_proj"], task_type="CAUSAL_LM"),
)
memft(trainer, "ot")
watch_recall(trainer, facts, every=10)  # logs recall beside TRL's metrics; stops once all records are certified
trainer.train()

after = memlaw.recall(trainer.model, base.tokenizer, facts)
print(f"exact match {before.acc_em:.0%} -> {after.acc_em:.0%} in {trainer.state.global_step} steps,", end=" ")
print(f"{after.certified} of {after.records} records certified")
