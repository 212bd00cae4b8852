"""With which lines of Python is an exported judge asked by `transformers` alone?

They stand in its model card and in `docs/use-the-judge.md`. What a task asks and how its verdict is
read is in the task's wording.
"""

from __future__ import annotations

from ste_jax.tasks import Task

_ASK = '''\
import json
import re
from pathlib import Path

from transformers import AutoModelForCausalLM, AutoTokenizer

PLACE = "{name}"  # this directory
tokenizer = AutoTokenizer.from_pretrained(PLACE)
model = AutoModelForCausalLM.from_pretrained(PLACE, dtype="auto")  # .to("cuda") on a GPU
card = json.loads(Path(PLACE, "ste_judge.json").read_text(encoding="utf-8"))


def prompt(**values):
    """The turns of the chat: system, worked examples, and what is asked."""
    template = card["template"]

    def fill(text, values):
        return re.sub(r"\\{{([a-z_]+)\\}}", lambda place: values.get(place[1], place[0]), text)

    turns = [{{"role": "system", "content": fill(template["system"], values)}}]
    for example in template["examples"]:
        said = template["start"] + example["reply"]
        turns.append({{"role": "user", "content": fill(template["user"], example)}})
        turns.append({{"role": "assistant", "content": said}})
    turns.append({{"role": "user", "content": fill(template["user"], values)}})
    if template["start"]:  # the judge continues it
        turns.append({{"role": "assistant", "content": template["start"]}})
    return [turn for turn in turns if turn["content"]]


def reply(turns):
    """What the judge says, drawn greedily."""
    started = turns[-1]["role"] == "assistant"
    inputs = tokenizer.apply_chat_template(
        turns,
        add_generation_prompt=not started,
        continue_final_message=started,
        return_dict=True,
        return_tensors="pt",
        **card.get("template_arguments", {{}}),
    ).to(model.device)
    new = card["sampling"]["max_new_tokens"]
    ids = model.generate(**inputs, max_new_tokens=new, do_sample=False)
    return tokenizer.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
'''


def usage(name: str, task: Task) -> str:
    """The Python that asks the judge in the directory `name`, which judges by `task`."""
    return f"{_ASK.format(name=name)}\n\n{task.wording.usage}"
