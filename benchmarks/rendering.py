"""How many conversations under today's chat templates are encoded as transformers renders them.

Prints the table of docs/data.md: `python -m benchmarks.rendering`.
"""

from collections import Counter

import trl

from tests.data.chat_templates import conversations_for, outcome, template_files, tokenizer_for


def main() -> None:
    """Count equal, refused and different conversations by kind."""
    counts: dict[str, Counter[str]] = {}
    files = template_files()
    for path in files:
        tokenizer = tokenizer_for(path.read_text(encoding="utf-8"), "llama")
        for name, messages in conversations_for(tokenizer).items():
            result = outcome(tokenizer, messages)
            key = result if result in ("equal", "refused") else "different"
            counts.setdefault(name, Counter())[key] += 1
    print(f"{len(files)} templates that trl {trl.__version__} carries\n")
    print("| conversation | equal | refused | different |\n|---|---|---|---|")
    for name, counted in counts.items():
        print(f"| {name} | {counted['equal']} | {counted['refused']} | {counted['different']} |")


if __name__ == "__main__":
    main()
