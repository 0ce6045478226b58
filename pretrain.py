"""Pre-train the small GPT-2 that ships in assets/, and measure it.

    .venv/bin/python assets/corpus.py build/corpus
    .venv/bin/python pretrain.py build/corpus/train --out assets/lm --early assets/lm-early
    .venv/bin/python pretrain.py build/corpus/train --out assets/lm-random --shuffle
    .venv/bin/python pretrain.py --measure assets/lm --heldout assets/heldout.txt
    .venv/bin/python pretrain.py --sample assets/lm --prompt "She had been"

reads   a folder of .txt files in English
writes  a folder in the model hub's format (config.json, model.safetensors, tokenizer.json), which
        `AutoModelForCausalLM.from_pretrained` loads, with pretrain.json, its provenance, and
        pretrain.csv, its learning curve, beside it

`--early` also keeps the model after a tenth of the tokens: the paper's early-stopped ablation.
`--shuffle` permutes the tokens within every block: the paper's random-corpus ablation (authors'
code: get_nlp_datasets.py:182), which keeps the vocabulary and loses the order.
A killed run goes on where it was when the same command is typed again.
"""

import argparse
import csv
import hashlib
import json
import lzma
import math
import os
import shutil
import sys
import time
from pathlib import Path

OPTIONS = argparse.ArgumentParser(description=__doc__,
                                  formatter_class=argparse.RawDescriptionHelpFormatter)
OPTIONS.add_argument("text", nargs="?", type=Path, help="the folder of text files")
OPTIONS.add_argument("--out", type=Path, help="the folder to write")
OPTIONS.add_argument("--early", type=Path, help="also write the model as it was after a tenth")
OPTIONS.add_argument("--shuffle", action="store_true", help="shuffle the tokens within blocks")
OPTIONS.add_argument("--measure", type=Path, metavar="LM", help="print the bits per byte of --heldout")
OPTIONS.add_argument("--heldout", type=Path, default=Path("assets/heldout.txt"))
OPTIONS.add_argument("--sample", type=Path, metavar="LM", help="print continuations of --prompt")
OPTIONS.add_argument("--prompt", default="She had been")
OPTIONS.add_argument("--layers", type=int, default=4)
OPTIONS.add_argument("--width", type=int, default=192)
OPTIONS.add_argument("--heads", type=int, default=6)
OPTIONS.add_argument("--vocabulary", type=int, default=4096)
OPTIONS.add_argument("--context", type=int, default=256, help="tokens a window")
OPTIONS.add_argument("--batch", type=int, default=16, help="windows a step")
OPTIONS.add_argument("--tokens", type=float, default=12e6, help="tokens to train on")
OPTIONS.add_argument("--lr", type=float, default=2e-3)
OPTIONS.add_argument("--seed", type=int, default=0)
OPTIONS.add_argument("--threads", type=int, default=1)

SHUFFLE_BLOCK = 1024  # the length of the authors' text blocks
EARLY = 0.1           # the share of the tokens after which --early keeps a copy


def read_tokens(folder, tokenizer):
    """All text files of a folder, in name order, as one array of token ids (N,) uint16."""
    import numpy as np

    end = tokenizer.eos_token_id
    ids = []
    for path in sorted(folder.glob("*.txt")):
        ids.extend(tokenizer(path.read_text(encoding="utf-8"), verbose=False)["input_ids"])
        ids.append(end)
    return np.array(ids, dtype=np.uint16)


def train_tokenizer(folder, vocabulary, context):
    """A byte-level BPE like GPT-2's, smaller: every byte string has an encoding."""
    from tokenizers import ByteLevelBPETokenizer
    from transformers import PreTrainedTokenizerFast

    bpe = ByteLevelBPETokenizer()
    bpe.train([str(path) for path in sorted(folder.glob("*.txt"))], vocab_size=vocabulary,
              min_frequency=2, special_tokens=["<|endoftext|>"], show_progress=False)
    return PreTrainedTokenizerFast(tokenizer_object=bpe._tokenizer, bos_token="<|endoftext|>",
                                   eos_token="<|endoftext|>", model_max_length=context)


def save(model, tokenizer, folder, provenance, rows):
    """Write the folder whole or not at all. Half precision: 6 MB instead of 12."""
    import torch
    from transformers import AutoModelForCausalLM

    part = folder.with_name(folder.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    half = AutoModelForCausalLM.from_config(model.config).to(torch.float16)
    half.load_state_dict(model.state_dict())
    half.save_pretrained(part)
    tokenizer.save_pretrained(part)
    (part / "pretrain.json").write_text(json.dumps(provenance, indent=1) + "\n")
    with open(part / "pretrain.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(part, folder)


def pretrain(args):
    import numpy as np
    import torch
    import torch.nn.functional as F
    from safetensors.torch import load_file, save_file
    from tqdm import tqdm
    from transformers import GPT2Config, GPT2LMHeadModel

    if not list(args.text.glob("*.txt")):
        sys.exit(f"pretrain: {args.text} holds no .txt file; assets/corpus.py makes such a folder")
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    tokenizer = train_tokenizer(args.text, args.vocabulary, args.context)
    tokens = read_tokens(args.text, tokenizer)
    corpus_tokens = len(tokens)
    if args.shuffle:
        tokens = tokens[:len(tokens) // SHUFFLE_BLOCK * SHUFFLE_BLOCK].reshape(-1, SHUFFLE_BLOCK)
        tokens = np.random.default_rng(args.seed).permuted(tokens, axis=1).reshape(-1)
    # Dropout is off while we pre-train: a corpus seen less than twice is not overfitted.
    config = GPT2Config(vocab_size=len(tokenizer), n_positions=args.context, n_embd=args.width,
                        n_layer=args.layers, n_head=args.heads, resid_pdrop=0, embd_pdrop=0,
                        attn_pdrop=0, activation_function="gelu_pytorch_tanh", use_cache=False,
                        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id)
    model = GPT2LMHeadModel(config)
    decay = [p for p in model.parameters() if p.dim() > 1]
    rest = [p for p in model.parameters() if p.dim() <= 1]
    optimizer = torch.optim.AdamW([{"params": decay, "weight_decay": 0.1},
                                   {"params": rest, "weight_decay": 0.0}],
                                  lr=args.lr, betas=(0.9, 0.95), fused=True)
    steps = int(args.tokens / (args.batch * args.context))
    warmup, early_step = max(1, steps // 50), max(1, int(steps * EARLY))
    provenance = {key: str(value) if isinstance(value, Path) else value
                  for key, value in vars(args).items()
                  if key not in ("measure", "heldout", "sample", "prompt", "early", "out", "text")}
    provenance |= {"corpus": {path.name: hashlib.sha256(path.read_bytes()).hexdigest()
                              for path in sorted(args.text.glob("*.txt"))},
                   "corpus_tokens": corpus_tokens, "torch": torch.__version__}

    # Windows depend on (seed, step) alone, so weights and moments are all that a resume needs.
    state_path = args.out.with_name(args.out.name + ".state.safetensors")
    done, rows = 0, []
    params = dict(model.named_parameters())
    if state_path.exists():
        state = load_file(state_path)
        done = int(state["step"])
        for name, p in params.items():
            p.data.copy_(state[f"weight/{name}"])
            optimizer.state[p] = {"step": torch.tensor(float(done)),
                                  "exp_avg": state[f"exp_avg/{name}"],
                                  "exp_avg_sq": state[f"exp_avg_sq/{name}"]}
        rows = json.loads(state_path.with_suffix(".json").read_text())
        print(f"pretrain: going on at step {done:,} of {steps:,}")

    losses, start = [], time.time()
    for step in tqdm(range(done, steps), initial=done, total=steps, disable=None):
        lr = min((step + 1) / warmup, 0.55 + 0.45 * math.cos(math.pi * step / steps)) * args.lr
        for group in optimizer.param_groups:
            group["lr"] = lr
        starts = np.random.default_rng((args.seed, step)).integers(
            0, len(tokens) - args.context, args.batch)
        batch = torch.from_numpy(tokens[starts[:, None] + np.arange(args.context + 1)].astype(np.int64))
        logits = model(batch[:, :-1]).logits                              # (B, T, V)
        loss = F.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
        if (step + 1) % 100 == 0 or step + 1 == steps:
            rows.append({"step": step + 1, "tokens": (step + 1) * args.batch * args.context,
                         "loss": round(float(np.mean(losses)), 4), "lr": round(lr, 7)})
            print(rows[-1], f"{time.time() - start:.0f} s", flush=True)
            losses = []
        reached = provenance | {"steps": step + 1, "tokens_seen": (step + 1) * args.batch * args.context}
        if args.early and step + 1 == early_step:
            save(model, tokenizer, args.early, reached | {"stopped_early": True},
                 rows or [{"step": step + 1, "loss": round(loss.item(), 4)}])
        if (step + 1) % 500 == 0 or step + 1 == steps:
            state = {"step": torch.tensor(step + 1)}
            for name, p in params.items():
                state[f"weight/{name}"] = p.data
                state[f"exp_avg/{name}"] = optimizer.state[p]["exp_avg"]
                state[f"exp_avg_sq/{name}"] = optimizer.state[p]["exp_avg_sq"]
            save_file(state, state_path.with_suffix(".part"))
            state_path.with_suffix(".json").write_text(json.dumps(rows))
            os.replace(state_path.with_suffix(".part"), state_path)
    save(model, tokenizer, args.out, provenance | {"steps": steps,
                                                   "tokens_seen": steps * args.batch * args.context}, rows)
    state_path.unlink()
    state_path.with_suffix(".json").unlink()
    print(f"pretrain: wrote {args.out}")


def load(folder):
    """(model in float32, tokenizer) from a folder in the hub's format."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    if not (folder / "config.json").exists():
        sys.exit(f"pretrain: {folder} holds no config.json; give a folder in the model hub's format")
    return (AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval(),
            AutoTokenizer.from_pretrained(folder))


def bits_per_byte(model, tokenizer, text, context):
    """Code length of `text` under the model, in bits per UTF-8 byte.

    Windows overlap by half, so every token but the first few is predicted from at least half a
    window; each token is counted once.
    """
    import torch
    import torch.nn.functional as F

    ids = torch.tensor([tokenizer.eos_token_id] + tokenizer(text, verbose=False)["input_ids"])
    nats, stride, counted = 0.0, context // 2, 1
    with torch.inference_mode():
        while counted < len(ids):
            begin = max(0, min(counted - stride, len(ids) - context))
            window = ids[begin:begin + context]
            logits = model(window[None]).logits[0, :-1]                   # (T-1, V)
            losses = F.cross_entropy(logits, window[1:], reduction="none")
            nats += losses[counted - begin - 1:].sum().item()
            counted = begin + len(window)
    return nats / math.log(2) / len(text.encode())


def measure(args):
    model, tokenizer = load(args.measure)
    text = args.heldout.read_text(encoding="utf-8")
    raw = text.encode()
    packed = len(lzma.compress(raw, preset=9 | lzma.PRESET_EXTREME))
    print(f"{args.heldout}: {len(raw):,} bytes, {len(tokenizer(text, verbose=False)['input_ids']):,} tokens")
    print(f"{args.measure}: {bits_per_byte(model, tokenizer, text, model.config.n_positions):.3f} "
          "bits per byte")
    print(f"xz -9e: {8 * packed / len(raw):.3f} bits per byte")


def sample(args):
    import torch

    model, tokenizer = load(args.sample)
    torch.manual_seed(args.seed)
    prompt = tokenizer(args.prompt, return_tensors="pt")
    out = model.generate(**prompt, do_sample=True, temperature=0.8, top_k=40, max_new_tokens=60,
                         num_return_sequences=4, pad_token_id=tokenizer.eos_token_id)
    for row in out:
        print("-", tokenizer.decode(row, skip_special_tokens=True).replace("\n", " "))


if __name__ == "__main__":
    args = OPTIONS.parse_args()
    if args.measure:
        measure(args)
    elif args.sample:
        sample(args)
    elif args.text and args.out:
        pretrain(args)
    else:
        sys.exit("pretrain: give a folder of text files and --out, or --measure LM, or --sample LM")
