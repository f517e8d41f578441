"""The bad-input table of commands and configurations: what is typed, what the one line says."""

import json
from pathlib import Path

PAIRS = [{"prompt": f"Q{n}?", "chosen": f"good {n}", "rejected": f"bad {n}"} for n in range(3)]
OWN = [{"prompt": f"Q{n}?", "responses": [f"mine {n}", f"also {n}"]} for n in range(3)]
ELSEWHERE = [{"prompt": "Other?", "responses": ["a", "b"]}]

CONFIGS = {
    "unknown.yaml": "confidance: 0.9\n",
    "inner.yaml": "sampling:\n  top_pp: 0.9\n",
    "type.yaml": "max_prompts: many\n",
    "section.yaml": "sampling: 5\n",
    "range.yaml": "sampling:\n  temperature: -1\n",
    "several.yaml": "votes: soft\nseed: -1\n",
    "nan.yaml": "confidence: .nan\n",
    "twice.yaml": "sampling:\n  seed: 3\n",
    "list.yaml": "- seed\n- 0\n",
    "words.yaml": "just some words\n",
    "cut.yaml": "seed: 0\nsampling: {top_p: 0.9\n",
    "tabs.yaml": "sampling:\n\ttop_p: 0.9\n",
    "temperature.yaml": "tempature: 0.5\n",
    "recipe.yaml": "policy: ./none\ndata: pairs.jsonl\n",
    "align.yaml": "policy: ./none\noff_policy: pairs.jsonl\njudge: table:pairs.jsonl\n",
    "grid.yaml": "recipe: {policy: p, off_policy: o, judge: j}\naxes: {sead: [0, 1]}\n",
    "policyless.yaml": "data: pairs.jsonl\n",
}

MODEL = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "vocab_size": 64,
}

TRAIN = "train recipe.yaml --out new"
ON = "measure --off-policy pairs.jsonl --on-policy own.jsonl --judge table:pairs.jsonl"
OFF = "measure --off-policy pairs.jsonl --judge table:pairs.jsonl"
SAMPLE = "sample --policy ./none --prompts pairs.jsonl --out new.jsonl"
SERVER = "sample --policy openai:m@http://127.0.0.1:9 --prompts pairs.jsonl --out new.jsonl"
JUDGE = "judge --judge table:pairs.jsonl"
ALIGN = "align align.yaml --out new"
EVALUATE = "evaluate --judge table:pairs.jsonl --baseline elsewhere.json --out new"
MT_BENCH = "evaluate --mt-bench questions.jsonl --policy openai:p@http://127.0.0.1:9 --out new"

COMMANDS: list[tuple[str, str, list[str]]] = [
    # what is wrong, the command, what the line must say
    ("a command that is none", "mesure", ["'mesure'", "measure", "prefstage --help"]),
    ("an option that is none", f"{ON} --temprature 1", ["--temprature", "--temperature"]),
    ("an option without value", "judge --pairs pairs.jsonl --judge", ["'--judge'", "argument"]),
    ("a word too many", f"{JUDGE} pairs.jsonl", ["pairs.jsonl", "judge --help"]),
    ("a missing option", "sample --policy p --prompts pairs.jsonl", ["'--out'"]),
    ("text for a number", f"{ON} --max-prompts many", ["'--max-prompts'", "'many'"]),
    ("a fraction for a whole number", f"{ON} --seed 1.5", ["'--seed'", "'1.5'"]),
    ("no data", "measure", ["off-policy", "--off-policy"]),
    ("no judge", "measure --policy p --off-policy pairs.jsonl", ["judge", "--judge"]),
    ("no policy", OFF, ["policy", "--policy"]),
    ("data that is not there", f"{ON} --off-policy none.jsonl", ["'none.jsonl'", "check the path"]),
    ("own answers not there", f"{ON} --on-policy none.jsonl", ["'none.jsonl'", "check the path"]),
    ("answers to other prompts", f"{ON} --on-policy elsewhere.jsonl", ["prompt"]),
    ("judgments not recorded", ON, ["not in table:pairs.jsonl", "?missing=undecided"]),
    ("no answer at all", f"{ON} --on-responses 0", ["'on_responses' is 0", "1"]),
    ("votes of no kind", f"{ON} --votes soft", ["'votes' is 'soft'", "'probability'"]),
    ("a rule that is none", f"{ON} --ties both", ["'ties' is 'both'", "'half' or 'off'"]),
    ("a rule without effect", f"{ON} --votes probability --ties off", ["no effect", "set ties"]),
    ("per cent for a share", f"{ON} --confidence 95", ["'confidence' is 95.0", "less than 1"]),
    ("sampling what is given", f"{ON} --temperature 0.5", ["sampling", "--on-policy"]),
    ("a file as run folder", f"{ON} --out pairs.jsonl", ["pairs.jsonl", "--out"]),
    ("a folder of someone else", f"{ON} --out theirs", ["theirs", "--out"]),
    ("a policy without address", f"{OFF} --policy openai:m", ["openai:MODEL@URL"]),
    ("a server without port", f"{OFF} --policy 'serve:vllm serve m'", ["{port}"]),
    ("a program not installed", f"{OFF} --policy 'serve:no-such {{port}}'", ["no-such", "install"]),
    ("a policy not there", f"{OFF} --policy ./none", ["./none", "check the name"]),
    ("no such configuration", f"{ON} --config none.yaml", ["none.yaml", "check the path"]),
    ("a folder as configuration", f"{ON} --config theirs", ["theirs", "YAML"]),
    ("an unknown setting", f"{ON} --config unknown.yaml", ["unknown.yaml", "'confidence'?"]),
    ("an unknown inner setting", f"{OFF} --policy p --config inner.yaml", ["'sampling.top_p'?"]),
    ("words for a number", f"{ON} --config type.yaml", ["'max_prompts' is 'many'"]),
    ("a number for a section", f"{OFF} --policy p --config section.yaml", ["'sampling' is 5"]),
    ("out of range", f"{OFF} --policy p --config range.yaml", ["'sampling.temperature' is -1"]),
    ("two faults at once", f"{ON} --config several.yaml", ["'votes' is 'soft'", "'seed' is -1"]),
    ("not a number", f"{ON} --config nan.yaml", ["'confidence' is nan"]),
    ("set in two places", f"{OFF} --policy p --config twice.yaml", ["sampling.seed", "remove"]),
    ("a list as settings", f"{ON} --config list.yaml", ["holds a list", "seed: 0"]),
    ("words as settings", f"{ON} --config words.yaml", ["holds a str"]),
    ("a bracket not closed", f"{ON} --config cut.yaml", ["cut.yaml: line 3", "mend that line"]),
    ("a tab in YAML", f"{ON} --config tabs.yaml", ["tabs.yaml: line 2", "mend that line"]),
    ("settings that are not UTF-8", f"{ON} --config latin.yaml", ["latin.yaml", "UTF-8"]),
    ("a format that is none", f"{SAMPLE} --out new.txt", ["new.txt", ".jsonl or .parquet"]),
    ("a mass above one", f"{SAMPLE} --top-p 1.5", ["'top_p' is 1.5", "less than or equal to 1"]),
    ("a negative top-k", f"{SAMPLE} --top-k -1", ["'top_k' is -1", "0"]),
    ("an infinite temperature", f"{SAMPLE} --temperature inf", ["'temperature' is inf", "finite"]),
    ("a limit of nothing", f"{SAMPLE} --max-prompts 0", ["'max_prompts' is 0", "change it"]),
    ("a rule for bad rows", f"{SAMPLE} --on-bad-row skip", ["'skip'", "'error' or 'quarantine'"]),
    ("a file without effect", f"{SAMPLE} --quarantine-file q.jsonl", ["quarantine_file", "both"]),
    ("overwriting the data", f"{SAMPLE} --out pairs.jsonl", ["pairs.jsonl exists", "another file"]),
    ("a setting misspelt", f"{SAMPLE} --config temperature.yaml", ["'temperature'?"]),
    ("an empty policy", "sample --policy '' --prompts pairs.jsonl --out n.jsonl", ["empty policy"]),
    ("a type for a server", f"{SERVER} --dtype float32", ["dtype=float32", "leave dtype out"]),
    ("nothing in flight", f"{SERVER} --concurrency 0", ["concurrency=0", "1 or more"]),
    ("no time to answer", f"{SERVER} --timeout-s 0", ["timeout_s=0", "more than 0 seconds"]),
    ("negative retries", f"{SERVER} --retries -1", ["retries=-1", "0 or more"]),
    ("nothing to judge", JUDGE, ["neither --pairs nor --candidates"]),
    ("two things to judge", f"{JUDGE} --pairs a --candidates b", ["both", "one of them"]),
    ("a judged table as CSV", f"{JUDGE} --pairs pairs.jsonl --out a.csv", ["a.csv", ".parquet"]),
    ("data as the store", f"{JUDGE} --pairs pairs.jsonl --store own.jsonl", ["own.jsonl"]),
    ("a judge without path", "judge --judge reward: --pairs pairs.jsonl", ["'reward:'", "choose"]),
    ("a judge of no kind", "judge --judge crowd:x --pairs pairs.jsonl", ["'crowd:x'", "choose"]),
    ("a module not there", "judge --judge python:no:f --pairs pairs.jsonl", ["'no'", "PYTHONPATH"]),
    ("no such function", "judge --judge python:json:f --pairs pairs.jsonl", ["'f'", "check"]),
    (
        "an option of a judge",
        "judge --judge python:json:dumps?symetric=true --pairs pairs.jsonl",
        ["'symetric'", "did you mean 'symmetric'?"],
    ),
    (
        "a judge's option out of range",
        "judge --judge reward:./none?max_length=0 --pairs pairs.jsonl",
        ["'max_length' is '0'", "greater than or equal to"],
    ),
    ("votes not there", "judge --judge table:no.jsonl --pairs pairs.jsonl", ["no.jsonl"]),
    ("a checkpoint not there", "judge --judge reward:./none --pairs pairs.jsonl", ["./none"]),
    ("a size without a job", "doctor --batch 4", ["--batch without --job", "--job score"]),
    ("a job without a model", "doctor --job score", ["--job without --model"]),
    ("a job that is none", "doctor --model model --job trian", ["trian", "train"]),
    ("a job of no size", "doctor --model model --job score --batch 0", ["--batch 0", "at least 1"]),
    ("a type that is none", "doctor --model model --dtype int3", ["int3", "bfloat16"]),
    ("a model not there", "doctor --model ./none", ["./none", "check the name"]),
    ("data as a model", "doctor --model pairs.jsonl", ["pairs.jsonl", "a model folder"]),
    ("an address that is none", "doctor --server localhost", ["'localhost'", "http://HOST:PORT"]),
    ("a server that is silent", "doctor --server http://127.0.0.1:9", ["127.0.0.1:9"]),
    ("nothing to evaluate", "evaluate", ["a model to evaluate", "--answers"]),
    ("answers without baseline", "evaluate --answers a.json", ["--baseline"]),
    ("judged and to be judged", f"{EVALUATE} --annotations a.json", ["--annotations and"]),
    ("verdicts not there", "evaluate --annotations none.json", ["none.json", "annotations"]),
    ("answers not there", f"{EVALUATE} --answers none.jsonl", ["none.jsonl"]),
    ("no prompt in common", f"{EVALUATE} --answers here.json", ["0 prompts answered by both"]),
    ("two answers to a prompt", f"{EVALUATE} --answers two.json", ["two different answers"]),
    ("answers without prompts", f"{EVALUATE} --answers promptless.json", ["promptless.json"]),
    (
        "a verdict out of range",
        "evaluate --annotations range.json",
        ["preference 3", "0 for a draw"],
    ),
    ("a verdict twice", "evaluate --annotations twice.json", ["rows 0 and 1"]),
    ("a lookup that is none", "evaluate --annotations good.json --lookup row", ["'as-published'"]),
    (
        "a lookup without rows",
        f"{EVALUATE} --answers here.json --lookup as-published",
        ["--lookup"],
    ),
    ("two kinds at once", f"{MT_BENCH} --task gsm8k", ["--task and --mt-bench"]),
    ("ratings without a judge", MT_BENCH, ["--mt-bench without --judge"]),
    ("a judge that rates not", f"{MT_BENCH} --judge table:pairs.jsonl", ["openai:MODEL@URL"]),
    ("repeats of nothing", "evaluate --repeats 2", ["--repeats without --mt-bench"]),
    (
        "a question of one turn",
        f"{MT_BENCH} --judge openai:j@http://127.0.0.1:9",
        ["questions.jsonl", "two turns"],
    ),
    ("shots in words", "evaluate --policy p --task gsm8k:many", ["TASK:SHOTS"]),
    ("a task's rows nowhere", "evaluate --policy p --task gsm8k --task-data x", ["TASK=FILE"]),
    ("no alignment there", "align none.yaml --out new", ["none.yaml", "check the path"]),
    ("no recipe and no run", "align --out new", ["neither", "--resume", "name the recipe"]),
    ("going on with nothing", "align --resume --out new", ["config.yaml", "check the path"]),
    ("a schedule misspelt", f"{ALIGN} --set schedule=atuo", ["did you mean 'auto'?"]),
    ("a schedule too long", f"{ALIGN} --set 'schedule=[on]'", ["1 entries for 2"]),
    ("a share above one", f"{ALIGN} --set schedule.mix=2", ["mix", "0.1"]),
    ("auto without measuring", f"{ALIGN} --set measure=false", ["measure is false"]),
    ("no gain without win rates", f"{ALIGN} --set stop.no_gain=true", ["set evaluate"]),
    ("a method that samples", f"{ALIGN} --set build.on=mixing", ["build.on is 'mixing'"]),
    ("a reference of no kind", f"{ALIGN} --set reference=start", ["'iteration' or 'fixed'"]),
    ("a training's policy", f"{ALIGN} --set train.policy=p", ["train.policy", "leave"]),
    ("a training's setting misspelt", f"{ALIGN} --set train.los=ipo", ["did you mean 'loss'?"]),
    ("no grid there", "experiment none.yaml --out new", ["none.yaml", "check the path"]),
    ("an axis that is no setting", "experiment grid.yaml --out new", ["'sead'", "'seed'"]),
    ("a policy to align not there", ALIGN, ["./none", "check the name"]),
    ("a folder that is no alignment", f"{ALIGN} --out theirs", ["theirs", "--out"]),
    ("no recipe there", "train none.yaml --out new", ["none.yaml", "check the path"]),
    ("a recipe for nobody", "train policyless.yaml --out new", ["'policy' is missing"]),
    ("a policy to train not there", f"{TRAIN}", ["./none"]),
    ("an argument misspelt", f"{TRAIN} --set training.lerning_rate=1", ["learning_rate'?"]),
    ("an argument elsewhere", f"{TRAIN} --set training.output_dir=x", ["--out", "move it there"]),
    ("a loss misspelt", f"{TRAIN} --set loss=sigmiod", ["'sigmoid'"]),
    ("a setting without value", f"{TRAIN} --set dtype", ["key=value"]),
    ("a negative seed", "demo --seed -1 --out new", ["'seed' is -1", "greater than or equal to 0"]),
    ("a file as demo folder", "demo --out pairs.jsonl", ["pairs.jsonl", "another folder"]),
]


def _output(prompt: str, text: str) -> dict[str, object]:
    return {"instruction": prompt, "output": text, "generator": "m"}


def _verdict(preference: float) -> dict[str, object]:
    told = {"output_1": "a", "output_2": "b", "generator_1": "base", "generator_2": "m"}
    return {"instruction": "Q?", "preference": preference, **told}


EVALUATED: dict[str, list[dict[str, object]]] = {
    "elsewhere.json": [_output("Other?", "a"), _output("Another?", "a")],
    "here.json": [_output("Q0?", "a"), _output("Q1?", "b")],
    "two.json": [_output("Q0?", "a"), _output("Q0?", "b")],
    "promptless.json": [{"output": "a", "generator": "m"}],
    "range.json": [_verdict(3)],
    "twice.json": [_verdict(1), _verdict(2)],
    "good.json": [_verdict(1)],
}


def make_inputs(folder: Path) -> None:
    """Write what the commands of the table name: data, configurations, a folder."""
    for name, outputs in EVALUATED.items():
        (folder / name).write_text(json.dumps(outputs))
    question = {"question_id": 1, "category": "math", "turns": ["once"]}
    (folder / "questions.jsonl").write_text(json.dumps(question) + "\n")
    for name, rows in (("pairs", PAIRS), ("own", OWN), ("elsewhere", ELSEWHERE)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name, text in CONFIGS.items():
        (folder / name).write_text(text)
    (folder / "latin.yaml").write_bytes("judge: caf\u00e9\n".encode("latin-1"))
    for name in ("theirs", "model"):
        (folder / name).mkdir()
    (folder / "theirs" / "thesis.txt").write_text("dear to someone\n")
    (folder / "model" / "config.json").write_text(json.dumps(MODEL))
