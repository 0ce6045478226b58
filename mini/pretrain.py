"""Pre-train the small GPT-2 that ships in mini/weights/, and measure it.

    .venv/bin/python -m mini.corpus build/corpus
    .venv/bin/python -m mini.pretrain build/corpus/train --out mini/weights/lm --early mini/weights/lm-early
    .venv/bin/python -m mini.pretrain build/corpus/train --out mini/weights/lm-random --shuffle
    .venv/bin/python -m mini.pretrain --markov --temperature 0.1 --tokens 4.096e6 --out mini/weights/lm-markov
    .venv/bin/python -m mini.pretrain --measure mini/weights/lm
    .venv/bin/python -m mini.pretrain --sample mini/weights/lm --prompt "She had been"

reads   a folder of .txt files in English, or nothing (--markov), or a language model to measure or sample
writes  a folder in the model hub's format (config.json, model.safetensors, tokenizer.json), which LM= and
        `AutoModelForCausalLM.from_pretrained` take, with pretrain.json, its provenance, and pretrain.csv,
        its learning curve; the folder is replaced whole when training is done
        OUT.state.safetensors beside it until then, from which the same command goes on after a kill

`--early` also keeps the model after a tenth of the tokens: the paper's early-stopped ablation.
`--shuffle` permutes the tokens within every block: the paper's random-corpus ablation (authors' code:
get_nlp_datasets.py:182), which keeps the vocabulary and loses the order.
`--markov` trains on no text but on a Markov chain of 100 states, each drawn from the one before it alone: the
control of Wang et al., ICLR 2024 (arXiv 2310.00771), with their transitions, the softmax of numbers uniform
in [0, 1] over `--temperature`. At temperature 1, theirs, a state tells 0.04 nats of the next one, which this
recipe does not learn. State s is token s + 1 of the shipped model's vocabulary: the model has its shape.
Training takes half an hour on one core. Equal seeds give equal weights, also after a kill.
Shapes: B windows of a batch, T context, N tokens, V vocabulary, M states of the chain.
"""

from pathlib import Path

from kit import fail, signals
from kit.settings import ANY_SEED, THREADS, Options, number

OPTIONS = Options(__doc__)
OPTIONS.add_argument("text", nargs="?", type=Path, help="the folder of text files")
OPTIONS.add_argument("--out", type=Path, help="the folder to write")
OPTIONS.add_argument("--early", type=Path, help="also write the model as it was after a tenth")
OPTIONS.add_argument("--shuffle", action="store_true", help="shuffle the tokens within blocks")
OPTIONS.add_argument("--markov", action="store_true", help="train on a Markov chain instead of text")
OPTIONS.add_argument("--temperature", type=number(float, "(0, 1e6]"), default=1.0,
                     help="of the chain: lower is more orderly")
OPTIONS.add_argument("--measure", metavar="LM", help="print the bits per byte of --heldout")
OPTIONS.add_argument("--heldout", type=Path, default=Path("mini/heldout.txt"))
OPTIONS.add_argument("--sample", metavar="LM", help="print continuations of --prompt")
OPTIONS.add_argument("--prompt", default="She had been")
OPTIONS.add_argument("--layers", type=number(int, "[1, 1000]"), default=4)
OPTIONS.add_argument("--width", type=number(int, "[1, 65536]"), default=192)
OPTIONS.add_argument("--heads", type=number(int, "[1, 65536]"), default=6)
OPTIONS.add_argument("--vocabulary", type=number(int, "[257, 1e9]"), default=4096)
OPTIONS.add_argument("--context", type=number(int, "[2, 1e6]"), default=256, help="tokens a window")
OPTIONS.add_argument("--batch", type=number(int, "[1, 1e5]"), default=16, help="windows a step")
OPTIONS.add_argument("--tokens", type=number(float, "[1, 1e15]"), default=12e6, help="tokens to train on")
OPTIONS.add_argument("--lr", type=number(float, "(0, 10]"), default=2e-3)
OPTIONS.add_argument("--seed", type=ANY_SEED, default=0)
OPTIONS.add_argument("--threads", type=THREADS, default=1)

if __name__ == "__main__":
    signals.catch()
    ARGS = OPTIONS.parse_args()  # before the imports below, which take seconds

import copy
import lzma
import math
import os
import shutil
import time

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import ByteLevelBPETokenizer
from tqdm import tqdm
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from kit import runs, seals
from kit.artifacts import load_tensors, save_tensors, write_csv, write_json
from kit.language_models import load_language_model, load_tokenizer
from kit.seals import sha256

SHUFFLE_BLOCK = 1024  # the length of the authors' text blocks
EARLY = 0.1           # the share of the tokens after which --early keeps a copy
STATES = 100          # of the Markov chain
LOG_EVERY = 100       # steps a row of pretrain.csv averages over, and after which the state is kept


# --- text --------------------------------------------------------------------------------------

def read_texts(folder):
    """{path: text} of a folder's .txt files, in name order."""
    paths = sorted(folder.glob("*.txt"))
    if not paths:
        fail(f"{folder} holds no .txt file; python -m mini.corpus makes such a folder")
    return {path: read_text(path) for path in paths}


def read_text(path):
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        fail(f"{path} is no readable text ({error}); give text files in UTF-8")


def train_tokenizer(paths, vocabulary, context):
    """A byte-level BPE like GPT-2's, smaller: every byte string has an encoding."""
    bpe = ByteLevelBPETokenizer()
    bpe.train([str(path) for path in paths], vocab_size=vocabulary, min_frequency=2,
              special_tokens=["<|endoftext|>"], show_progress=False)
    return PreTrainedTokenizerFast(tokenizer_object=bpe._tokenizer, bos_token="<|endoftext|>",
                                   eos_token="<|endoftext|>", model_max_length=context)


def encode(texts, tokenizer):
    """All texts as one array of token ids (N,) uint16, an end-of-text token behind each."""
    ids = []
    for text in texts:
        ids.extend(tokenizer(text, verbose=False)["input_ids"])
        ids.append(tokenizer.eos_token_id)
    return np.array(ids, dtype=np.uint16)


def shuffle_blocks(tokens, seed):
    """The tokens of whole blocks, in random order within each; a last piece of a block is dropped."""
    blocks = tokens[:len(tokens) // SHUFFLE_BLOCK * SHUFFLE_BLOCK].reshape(-1, SHUFFLE_BLOCK)
    return np.random.default_rng(seed).permuted(blocks, axis=1).reshape(-1)


def windows(tokens, count, context, seed, step):
    """(count, T + 1) int64: a step's windows, which the seed and its number determine."""
    starts = np.random.default_rng((seed, step)).integers(0, len(tokens) - context, count)
    return torch.from_numpy(tokens[starts[:, None] + np.arange(context + 1)].astype(np.int64))


# --- a Markov chain ----------------------------------------------------------------------------

def transitions(states, seed, temperature=1.0):
    """(M, M) float64: in row s, the probability of each state after s; and (M,), that of each first state."""
    numbers = np.random.default_rng((seed, 0)).random((states + 1, states)) / temperature
    weights = np.exp(numbers - (numbers.max(1, keepdims=True) if temperature < 0.01 else 0))  # no overflow
    probabilities = weights / weights.sum(1, keepdims=True)
    return probabilities[1:], probabilities[0]


def entropy(probabilities):
    """The loss that no model goes below, in nats a token: the mean entropy of the next state, over how often
    each state comes in the long run."""
    often = np.linalg.matrix_power(probabilities, 1000)[0]
    logarithms = np.log(probabilities, out=np.zeros_like(probabilities), where=probabilities > 0)
    return round(float(-often @ (probabilities * logarithms).sum(1)), 4)


def chain_windows(probabilities, first, count, context, seed, step):
    """(count, T + 1) int64: windows of tokens, each its own walk from its own first state."""
    drawn = np.random.default_rng((seed, step, 1)).random((context + 1, count))
    sums = np.cumsum(probabilities, 1)[:, :-1]  # the last state takes what rounding leaves
    walk = [(drawn[0, :, None] >= np.cumsum(first)[:-1]).sum(1)]
    for chance in drawn[1:]:
        walk.append((chance[:, None] >= sums[walk[-1]]).sum(1))
    return torch.from_numpy(np.stack(walk, 1) + 1)


# --- training ----------------------------------------------------------------------------------

def make_model(args, tokenizer):
    """A GPT-2 with random weights. No dropout: a corpus seen less than twice is not overfitted."""
    return GPT2LMHeadModel(GPT2Config(
        vocab_size=len(tokenizer), n_positions=args.context, n_embd=args.width, n_layer=args.layers,
        n_head=args.heads, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0, use_cache=False,
        activation_function="gelu_pytorch_tanh",
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id))


def make_optimizer(model, lr):
    decay = [p for p in model.parameters() if p.dim() > 1]
    rest = [p for p in model.parameters() if p.dim() <= 1]
    return torch.optim.AdamW([{"params": decay, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}],
                             lr=lr, betas=(0.9, 0.95), fused=True)


def learning_rate(lr, step, steps):
    """Linear warm-up over a fiftieth of the steps, then a cosine to a tenth."""
    warmup = max(1, steps // 50)
    return min((step + 1) / warmup, 0.55 + 0.45 * math.cos(math.pi * step / steps)) * lr


def training_step(model, optimizer, batch, lr):
    """One update on windows (B, T + 1); returns the loss in nats a token."""
    for group in optimizer.param_groups:
        group["lr"] = lr
    logits = model(batch[:, :-1]).logits                                  # (B, T, V)
    loss = F.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    return loss.item()


def check(args):
    """Refuse what can be refused before half an hour of work."""
    for folder in filter(None, (args.out, args.early)):
        if folder.exists() and not (folder / "config.json").exists():
            fail(f"{folder} is there and is no language model; name another folder, this would be replaced")
    if args.vocabulary > 1 << 16:
        fail(f"--vocabulary {args.vocabulary:,} is more than 16 bits can number")
    if args.width % args.heads:
        fail(f"--width {args.width} is no multiple of --heads {args.heads}")
    if args.tokens < args.batch * args.context:
        fail(f"--tokens {args.tokens:g} are less than one step's {args.batch * args.context:,}")


def material(args):
    """(tokenizer, step -> windows (B, T + 1), what pretrain.json says of them)."""
    if args.markov:
        chain = transitions(STATES, args.seed, args.temperature)
        about = {"markov": True, "states": STATES, "temperature": args.temperature,
                 "entropy": entropy(chain[0])}
        return load_tokenizer("mini"), lambda step: chain_windows(
            *chain, args.batch, args.context, args.seed, step), about
    texts = read_texts(args.text)
    tokenizer = train_tokenizer(texts, args.vocabulary, args.context)
    tokens = encode(texts.values(), tokenizer)
    about = {"shuffle": args.shuffle, "corpus": {path.name: sha256(path) for path in texts},
             "corpus_tokens": len(tokens)}
    if args.shuffle:
        tokens = shuffle_blocks(tokens, args.seed)
    if len(tokens) <= args.context:
        fail(f"{args.text} holds too little text: no window of {args.context} tokens")
    return tokenizer, lambda step: windows(tokens, args.batch, args.context, args.seed, step), about


def pretrain(args):
    """Train on args.text, or on the chain, and write args.out, and args.early on the way."""
    check(args)
    torch.set_num_threads(args.threads)
    tokenizer, batch_of, about = material(args)
    provenance = {name: getattr(args, name) for name in (
        "layers", "width", "heads", "vocabulary", "context", "batch", "tokens", "lr", "seed", "threads")}
    provenance |= about | {"torch": torch.__version__}
    torch.manual_seed(args.seed)
    model = make_model(args, tokenizer)
    optimizer, weights = make_optimizer(model, args.lr), dict(model.named_parameters())
    step_tokens = args.batch * args.context
    steps = int(args.tokens / step_tokens)
    kept = args.out.with_name(f"{args.out.name}.state.safetensors")
    done, rows = go_on(kept, provenance, weights, optimizer)
    losses, start = [], time.time()
    for step in tqdm(range(done + 1, steps + 1), initial=done, total=steps, disable=None):
        lr = learning_rate(args.lr, step - 1, steps)
        losses.append(training_step(model, optimizer, batch_of(step - 1), lr))
        row = {"step": step, "tokens": step * step_tokens, "loss": round(float(np.mean(losses)), 4),
               "lr": round(lr, 7)}
        reached = provenance | {"steps": step, "tokens_seen": step * step_tokens}
        if step % LOG_EVERY == 0 or step == steps:
            rows.append(row)
            print(row, f"{time.time() - start:.0f} s", flush=True)
            losses = []
        if args.early and step == max(1, int(steps * EARLY)):
            save(model, tokenizer, args.early, reached | {"stopped_early": True}, rows or [row])
        if step % LOG_EVERY == 0 and step < steps:
            state = runs.state_of(weights, [optimizer])
            save_tensors(kept, state, step=step, rows=rows, provenance=provenance)
    save(model, tokenizer, args.out, reached, rows)
    kept.unlink(missing_ok=True)


def go_on(kept, provenance, weights, optimizer):
    """(steps done, their rows) of a killed training, whose state is loaded; (0, []) if there is none."""
    if not kept.exists():
        return 0, []
    state, found = load_tensors(kept)
    if found["provenance"] != provenance:
        fail(f"{kept} is of a training with other settings or text; finish that one, or delete the file")
    runs.put_back(state, weights, [optimizer])
    print(f"{kept}: goes on after {found['step']:,} steps")
    return found["step"], found["rows"]


def save(model, tokenizer, folder, provenance, rows):
    """Write the folder whole or not at all. Half precision: 5 MB instead of 10."""
    part = folder.with_name(f"{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    copy.deepcopy(model).half().save_pretrained(part)
    tokenizer.save_pretrained(part)
    write_json(part / "pretrain.json", provenance)
    write_csv(part / "pretrain.csv", tuple(rows[0]), rows)
    seals.write_list(part)
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(part, folder)
    print(f"{folder}: {provenance['tokens_seen']:,} tokens seen")


# --- measuring ---------------------------------------------------------------------------------

def bits_per_byte(model, tokenizer, text, context):
    """Code length of `text` under the model, in bits per UTF-8 byte.

    Windows overlap by half, so every token but the first few is predicted from at least half a
    window; each token is counted once.
    """
    first = tokenizer.bos_token_id if tokenizer.eos_token_id is None else tokenizer.eos_token_id
    if first is None:
        fail("the tokenizer has neither an eos_token nor a bos_token for a text to begin with; name one in "
             "its tokenizer_config.json")
    ids = torch.tensor([first] + tokenizer(text, verbose=False)["input_ids"])
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
    text = read_text(args.heldout)
    raw = text.encode()
    if not raw:
        fail(f"{args.heldout} is empty; give a text")
    packed = len(lzma.compress(raw, preset=9 | lzma.PRESET_EXTREME))
    model, tokenizer = load_language_model(args.measure, dropout=0.0).eval(), load_tokenizer(args.measure)
    context = model.config.max_position_embeddings
    print(f"{args.heldout}: {len(raw):,} bytes, {len(tokenizer(text, verbose=False)['input_ids']):,} tokens")
    print(f"{args.measure}: {bits_per_byte(model, tokenizer, text, context):.3f} bits per byte")
    print(f"xz -9e: {8 * packed / len(raw):.3f} bits per byte")


def sample(args):
    model, tokenizer = load_language_model(args.sample, dropout=0.0).eval(), load_tokenizer(args.sample)
    torch.manual_seed(args.seed)
    prompt = tokenizer(args.prompt, return_tensors="pt")
    context = model.config.max_position_embeddings
    room = context - prompt["input_ids"].shape[1]
    if room == context:
        fail("--prompt is empty; give a word that the text begins with")
    if room < 1:
        fail(f"--prompt fills all {context} positions of the model; shorten it")
    out = model.generate(**prompt, do_sample=True, temperature=0.8, top_k=40, max_new_tokens=min(60, room),
                         num_return_sequences=4, pad_token_id=tokenizer.eos_token_id)
    for row in out:
        print("-", tokenizer.decode(row, skip_special_tokens=True).replace("\n", " "))


def main(args):
    if args.measure:
        measure(args)
    elif args.sample:
        sample(args)
    elif args.out and bool(args.text) != args.markov:
        pretrain(args)
    else:
        fail("give --out and a folder of text files or --markov, or --measure LM, or --sample LM")


if __name__ == "__main__":
    main(ARGS)
