"""Saved folders: whether every combination comes back, and what becomes of killed, mutated and hostile ones.

    python benchmarks/files.py registry [prior]     # every prior x likelihood x posterior, loaded in one fresh process
    python benchmarks/files.py kill [times]         # SIGKILL while a process saves: the old or the new model loads
    python benchmarks/files.py mutations [times]    # of the bytes of a folder, and of its values
    python benchmarks/files.py hostile [name]       # folders meant to do harm: seconds, memory, and whether a canary sings

`registry` takes the combinations of `product.py` that can be scored, at its sizes, without missing cells, and compares
scores and log densities to the bit. `kill`: a process saves two models of 1 MB in turn and is killed after up to 80 ms.
`mutations`: flips, insertions, deletions, truncations, swaps within a file and of whole files, of a calibration over an
ensemble: an error of this library, or the same bytes and p-values; then one value of the JSON is another, or gone, and the
digest right: an error of this library, or a model. `hostile` loads each folder in a process of its own, in less than a
second of CPU and 200 MB.
"""

import argparse
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from importlib.util import module_from_spec, spec_from_file_location
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

import ppl_vae as pv
from ppl_vae.files import digest, to_json
from ppl_vae.use.store import PAIR

X = np.random.RandomState(0).randn(60, 4).astype("float32")


# ---- every combination


def matrix() -> Any:
    """`product.py` as a module."""
    spec = spec_from_file_location("product", Path(__file__).parent / "product.py")
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


LOADS = """
import json, sys, numpy as np, torch, ppl_vae as pv
torch.set_num_threads(1)
found = {}
for name in json.load(sys.stdin):
    try:
        vae = pv.load(name)
        with np.load(name + "/rows.npz", allow_pickle=False) as kept:
            batch = pv.Batch(*(torch.from_numpy(kept[f]) if f in kept else None for f in pv.Batch._fields))
            again = [pv.score(vae, batch, num_draws=2).values, *map(np.asarray, pv.draws(vae, batch, 2)[2:5])]
            found[name] = all(np.array_equal(a, kept[f"found{j}"], equal_nan=True) for j, a in enumerate(again))
    except Exception as error:
        found[name] = f"{type(error).__name__}: {error}"
print(json.dumps(found))
"""


def keep(vae: Any, rows: Any, folder: Path) -> None:
    """Save a model, and beside it encoded rows with their scores and log densities: of x, z, and z given x."""
    pv.save(vae, folder)
    batch = vae.batch(rows)
    arrays = {field: part.numpy() for field, part in batch._asdict().items() if part is not None}
    found = [pv.score(vae, batch, num_draws=2).values, *map(np.asarray, pv.draws(vae, batch, 2)[2:5])]
    np.savez(folder / "rows.npz", **arrays, **{f"found{j}": of for j, of in enumerate(found)})


def loaded_anew(folders: list[Path]) -> dict[str, Any]:
    """For each folder of `keep` whether a fresh process finds the same scores to the bit, or its error."""
    names = json.dumps([str(folder) for folder in folders])
    run = subprocess.run([sys.executable, "-c", LOADS], input=names, capture_output=True, text=True, check=True)
    return {Path(name).name: outcome for name, outcome in json.loads(run.stdout).items()}


def combination(product_: Any, names: tuple[str, str, str]) -> tuple[Any, Any]:
    """A model of `product.py` by its three names, and its rows."""
    prior, likelihood, posterior = names
    options = {**product_.PRIOR_OPTIONS[prior], **product_.POSTERIOR_OPTIONS[posterior]}
    options |= {**product_.LIKELIHOOD_OPTIONS[likelihood], "prior": prior, "posterior": posterior}
    rows = product_.data(product_.Cell(*names))
    return pv.build(rows, latent=3, hidden=(8,), **options), rows


def registry(only: str | None = None) -> int:
    """Save every combination that can be scored; load all in one fresh process. Returns the number of failures."""
    product_, counts, failures, places = matrix(), Counter[str](), [], {}
    with tempfile.TemporaryDirectory() as root:
        for names in product(*product_.FACTORS[:3]):
            if only in (None, names[0]):
                counts["combinations"] += 1
                folder = Path(root) / str(len(places))
                try:
                    vae, rows = combination(product_, names)
                    keep(vae, rows, folder)
                    places[folder.name] = names
                except pv.PplVaeError as error:
                    shutil.rmtree(folder, ignore_errors=True)
                    if product_.reasons(product_.Cell(*names)):
                        counts["refused for a reason of product.py"] += 1
                    else:
                        failures.append(f"{names}: {type(error).__name__}: {error}")
        for name, outcome in loaded_anew([Path(root) / name for name in places]).items():
            if outcome is True:
                counts["loaded in a fresh process, scores bit-equal"] += 1
            else:
                failures.append(f"{places[name]}: {outcome}")
    print(pd.DataFrame([{**counts, "failed": len(failures)}]).to_markdown(index=False))
    print("\n".join(failures))
    return len(failures)


# ---- killed


def killed(times: int, seed: int = 0, hidden: int = 400) -> Counter[str]:
    """What loads after a process that saves two models in turn was killed at random moments."""
    rows, random = X[:8], np.random.default_rng(seed)
    models = [pv.build(X, latent=2, hidden=(hidden, hidden), seed=j) for j in (0, 1)]
    expected = [pv.score(vae, rows, num_draws=2).values for vae in models]
    found: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as root:
        pv.save(models[0], root)
        for _ in range(times):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)  # of forks beside threads, which only save here
                child = os.fork()
            if not child:
                while True:
                    for vae in models:
                        pv.save(vae, root)
            time.sleep(random.uniform(0.002, 0.08))
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            left = len(list(Path(root).iterdir()))
            found["killed in the middle of a save"] += left != 2
            try:
                scores = pv.score(pv.load(root), rows, num_draws=2).values
            except pv.PplVaeError:
                found["UNREADABLE"] += 1
            else:
                which = [name for name, of in zip(("first", "second"), expected) if np.array_equal(of, scores)]
                found[f"{which[0]} model" if which else "OTHER SCORES"] += 1
        pv.save(models[0], root)
        found["files left after one more save"] = len(list(Path(root).iterdir()))
    return found


# ---- mutated


def mutant(raw: bytes, other: bytes, random: np.random.RandomState) -> tuple[str, bytes]:
    """One mutation of a file's bytes."""
    at, to = sorted(random.randint(0, len(raw), 2))
    by = bytes(random.randint(0, 256, random.randint(1, 9), dtype=np.uint8))
    kinds = {
        "flip": lambda: raw[:at] + bytes([raw[at] ^ (1 << random.randint(8))]) + raw[at + 1 :],
        "insert": lambda: raw[:at] + by + raw[at:],
        "delete": lambda: raw[:at] + raw[to + 1 :],
        "truncate": lambda: raw[:at],
        "swap": lambda: (
            raw[:at] + raw[to : to + 1] + raw[at + 1 : to] + raw[at : at + 1] + raw[to + 1 :] if at < to else raw
        ),
        "swap files": lambda: other,
    }
    name = list(kinds)[random.randint(len(kinds))]
    return name, kinds[name]()


def example(folder: Path) -> Any:
    """A calibration over an ensemble, saved; a function gives its answers."""
    members = [pv.build(X, latent=2, hidden=(3,), seed=j) for j in (0, 1)]
    calibration = pv.calibrate(pv.Ensemble(members), X[:30], num_draws=2, level=0.1)
    pv.save(calibration, folder)
    return calibration.p_values(X[30:34])


def mutations(times: int, seed: int = 0) -> Counter[str]:
    """What becomes of a folder with one mutated file."""
    random, found = np.random.RandomState(seed), Counter[str]()
    with tempfile.TemporaryDirectory() as root:
        expected = example(Path(root))
        files = sorted(Path(root).iterdir())
        raws = [file.read_bytes() for file in files]
        for _ in range(times):
            which = random.randint(2)
            name, changed = mutant(raws[which], raws[1 - which], random)
            files[which].write_bytes(changed)
            found[outcome(name, changed != raws[which], root, expected)] += 1
            files[which].write_bytes(raws[which])
    return found


def outcome(name: str, changed: bool, root: str, expected: np.ndarray) -> str:
    """What loading gives, in words."""
    try:
        thing = pv.load(root)
    except pv.PplVaeError as error:
        return f"{name}: {type(error).__name__}" if changed else f"{name}: ERROR OF THE SAME BYTES"
    except Exception as error:
        return f"{name}: OTHER {type(error).__name__}"
    if changed:
        return f"{name}: LOADED"
    same = np.array_equal(thing.p_values(X[30:34]), expected)
    return f"{name}: same bytes, same answers" if same else f"{name}: OTHER ANSWERS"


STRANGE = (
    None,
    True,
    -1,
    0,
    1e308,
    10**30,
    "",
    "os.system",
    "../x",
    [],
    {},
    [[]],
    {"class_path": "os.system"},
    "x" * 999,
)


def forged(times: int, seed: int = 0) -> Counter[str]:
    """What becomes of a folder in whose JSON one value is another, the digest made right: a model, or an error of ours."""
    random, found = np.random.RandomState(seed), Counter[str]()
    with tempfile.TemporaryDirectory() as root:
        example(Path(root))
        file = Path(root) / "model.json"
        raw = file.read_text()
        for _ in range(times):
            content = json.loads(raw)
            places = [place for place in walk(content) if place[1] != "sha256"]
            holder, key = places[random.randint(len(places))]
            strange = STRANGE[random.randint(len(STRANGE))]
            if random.randint(4):
                holder[key] = strange
            else:
                del holder[key]
            forge(file, content)
            try:
                pv.load(root)
                found["digest made right: another model"] += 1
            except pv.PplVaeError as error:
                found[f"digest made right: {type(error).__name__}"] += 1
            except Exception as error:
                found[f"digest made right: OTHER {type(error).__name__}: {error}"[:200]] += 1
            file.write_text(raw)
    return found


def walk(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every place of some JSON, as its holder and key."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in list(items):
        yield value, key
        yield from walk(inner)


def forge(file: Path, content: dict[str, Any]) -> None:
    """Write a model.json whose digest is right, whatever it says."""
    rest = {key: value for key, value in content.items() if key != "sha256"}
    file.write_text(to_json({**rest, "sha256": digest(to_json(rest).encode())}))


# ---- hostile


class Payload:
    """Unpickled, it writes a file."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.canary}",)


def weights(folder: Path, raw: bytes | int, size: int | None = None) -> None:
    """Put bytes, or a sparse file of a size, in the place of the tensors, and make digest and size in model.json right."""
    content = json.loads((folder / "model.json").read_text())
    next(folder.glob("*.safetensors")).unlink()
    sha256 = "0" * 64 if isinstance(raw, int) else digest(raw)
    with (folder / f"weights-{sha256[:16]}.safetensors").open("wb") as file:
        file.truncate(raw) if isinstance(raw, int) else file.write(raw)
        if isinstance(raw, int):
            file.seek(0)
            file.write((raw - 8).to_bytes(8, "little"))
    length = raw if isinstance(raw, int) else len(raw)
    content["weights"] = {"sha256": sha256, "size": length if size is None else size}
    forge(folder / "model.json", content)


def told(folder: Path, text: str) -> None:
    """Put a text in the place of model.json."""
    (folder / "model.json").write_text(text)


def node(**changes: Any) -> Callable[[Path, Path], None]:
    """A folder whose model's node is changed."""

    def write(folder: Path, canary: Path) -> None:
        content = json.loads((folder / "model.json").read_text())
        content["model"] |= changes
        forge(folder / "model.json", content)

    return write


def recipe(**changes: Any) -> Callable[[Path, Path], None]:
    """A folder whose model's recipe is changed."""

    def write(folder: Path, canary: Path) -> None:
        content = json.loads((folder / "model.json").read_text())
        content["model"]["recipe"] |= changes
        forge(folder / "model.json", content)

    return write


def top(**changes: Any) -> Callable[[Path, Path], None]:
    """A folder whose model.json is changed at the top."""

    def write(folder: Path, canary: Path) -> None:
        content = json.loads((folder / "model.json").read_text())
        forge(folder / "model.json", {**content, **changes})

    return write


def linked(name: str) -> Callable[[Path, Path], None]:
    """A folder in which a file is a link to the same content elsewhere."""

    def write(folder: Path, canary: Path) -> None:
        file = next(folder.glob(name))
        elsewhere = folder.parent / f"elsewhere-{file.name}"
        shutil.move(file, elsewhere)
        file.symlink_to(elsewhere)

    return write


def pipe(folder: Path, canary: Path) -> None:
    """A folder whose model.json would be waited for."""
    (folder / "model.json").unlink()
    os.mkfifo(folder / "model.json")


def doubled(folder: Path, canary: Path) -> None:
    """Tensors of which two have one name."""
    raw = next(folder.glob("*.safetensors")).read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = raw[8 : 8 + length].rstrip()
    inner = json.loads(header)
    name = next(iter(inner))
    header = b"{" + json.dumps(name).encode() + b":" + json.dumps(inner[name]).encode() + b"," + header[1:]
    weights(folder, len(header).to_bytes(8, "little") + header + raw[8 + length :])


def renamed(folder: Path, canary: Path) -> None:
    """Tensors of which one is called by a path out of the folder."""
    raw = next(folder.glob("*.safetensors")).read_bytes()
    assert raw.count(b'"steps"') == 1
    weights(folder, raw.replace(b'"steps"', b'"../st"'))


def deep_nodes(depth: int) -> Callable[[Path, Path], None]:
    """Things in things."""

    def write(folder: Path, canary: Path) -> None:
        content = json.loads((folder / "model.json").read_text())
        for _ in range(depth):
            content["model"] = {"kind": "ensemble", "parts": {"0": content["model"]}}
        forge(folder / "model.json", content)

    return write


def values(text: str) -> Callable[[Path, Path], None]:
    """A model.json with something more in the model's node, written as it is."""

    def write(folder: Path, canary: Path) -> None:
        raw = (folder / "model.json").read_text()
        changed = raw.replace('"model": {', '"model": {"more": ' + text + ",", 1)
        line = next(line for line in changed.splitlines(keepends=True) if line.startswith(' "sha256"'))
        sha256 = digest(changed.replace(line, "", 1).encode())
        told(folder, changed.replace(line, f' "sha256": "{sha256}",\n', 1))

    return write


MANY = {str(j): {"kind": "ensemble"} for j in range(100_000)}
FEWER = dict(list(MANY.items())[:50_000])
HOSTILE: dict[str, Callable[[Path, Path], None]] = {
    "pickle in the weights' place": lambda f, canary: weights(f, pickle.dumps(Payload(canary))),
    "pickle in model.json's place": lambda f, canary: (
        (f / "model.json").write_bytes(pickle.dumps(Payload(canary))) and None
    ),
    "class path as likelihood": recipe(likelihood={"class_path": "os.system"}),
    "class path as likelihood of a column": recipe(likelihood={"0": {"class_path": "os.system"}}),
    "class path as prior": recipe(prior={"class_path": "os.system", "init_args": {"command": "true"}}),
    "import path as nets": recipe(nets="os.system"),
    "class path as kind": node(kind={"class_path": "os.system"}),
    "unknown kind": node(kind="os.system"),
    "object asked for": node(own={"prior": "os.system"}),
    "path in the weights' digest": top(weights={"sha256": "../" * 20 + "abcd", "size": 4}),
    "path as a tensor's name": renamed,
    "path as a part's name": node(parts={"../../x": {"kind": "ensemble"}}),
    "key twice in model.json": values('1, "more": 2'),
    "tensor twice": doubled,
    "NaN": values("NaN"),
    "infinity": values("1e999"),
    "number of 5000 digits": values("9" * 5000),
    "header claims 100 MB": lambda f, _: weights(f, (100 * 2**20).to_bytes(8, "little") + b"{}"),
    "header claims 2^63": lambda f, _: weights(f, (2**63).to_bytes(8, "little") + b"{}"),
    "header of 1 GB": lambda f, _: weights(f, 2**30),
    "header of many tensors": lambda f, _: weights(f, many_tensors(PAIR.most // 64)),
    "weights of 10 GB": lambda f, _: weights(f, 10 * 2**30, 1000),
    "weights are a link": linked("*.safetensors"),
    "model.json is a link": linked("model.json"),
    "model.json is a pipe": pipe,
    "brackets 100,000 deep": lambda f, _: told(f, "[" * 100_000),
    "values 500 deep": values("[" * 500 + "0," * 500_000 + "0" + "]" * 500),
    "things 5 deep": deep_nodes(5),
    "things 200 deep": deep_nodes(200),
    "50,000 things": node(kind="ensemble", parts=FEWER),
    "100,000 things": node(kind="ensemble", parts=MANY),
    "most values": values("[" + "[]," * (PAIR.values // 9 - 1000) + "0]"),
    "most objects": values("[" + '{"a":0},' * (PAIR.values // 9 - 1000) + "0]"),
    "too many values": values("[" + "0," * (7 * 2**20) + "0]"),
    "model.json of 17 MB": values('"' + "x" * (17 * 2**20) + '"'),
    "latent of 1e12": recipe(latent=10**12),
    "hidden of 1e12": recipe(hidden=[10**12]),
    "100,000 layers": recipe(hidden=[3] * 100_000),
    "1e9 transforms": recipe(prior="flow", transforms=10**9),
    "transforms of 1e10 weights": recipe(prior="flow", flow_hidden=[10**5, 10**5]),
    "posterior of 1e10 weights": recipe(posterior="iaf", flow_hidden=[10**5, 10**5]),
    "a flow of 1e6 dimensions": recipe(prior="flow", latent=10**6),
    "1e12 components": recipe(prior="vamp", components=10**12),
    "columns beyond the names": lambda f, _: schema(f, shape=[10**9]),
    "newer format": top(format_version=10**6),
    "calibration of itself": node(
        kind="calibration", folds=[{"batch": {"$part": "0"}}], level=0, rule="os.system", delta=0
    ),
    "cells of a type of 1 GB": lambda f, _: wide_cells(f),
}


def many_tensors(count: int) -> bytes:
    """As many tensors of nothing as have room."""
    one = '"%d":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}'
    header = ("{" + ",".join(one % j for j in range(count)) + "}").encode()
    return len(header).to_bytes(8, "little") + header


def schema(folder: Path, **changes: Any) -> None:
    """Change the model's schema."""
    content = json.loads((folder / "model.json").read_text())
    content["model"]["schema"] |= changes
    forge(folder / "model.json", content)


def wide_cells(folder: Path) -> None:
    """A calibration whose rows ask for cells of 1 GB."""
    content = json.loads((folder / "model.json").read_text())
    cells = {"codes": {"$array": "steps"}, "levels": ["a"], "dtype": "S1000000000", "ordered": False}
    fold = {"batch": {"$frame": [["a", cells]]}, "options": {}, "scores": {"$array": "steps"}}
    calibration = {"kind": "calibration", "rule": "conformal", "level": 0.1, "delta": 0.1, "folds": [fold]}
    content["model"] = {**calibration, "parts": {"0": content["model"]}}
    raw = next(folder.glob("*.safetensors")).read_bytes()
    length = int.from_bytes(raw[:8], "little")
    inner = json.loads(raw[8 : 8 + length])
    header = json.dumps({f"0/{n}" if n != "steps" else n: of for n, of in inner.items()}).encode()
    forge(folder / "model.json", content)
    weights(folder, len(header).to_bytes(8, "little") + header + raw[8 + length :])


ATTACKED = r"""
import re, sys, time, torch, ppl_vae as pv
torch.set_num_threads(1)
pv.load, pv.VAEDetector
def held(name): return int(re.search(name + r":\s+(\d+) kB", open("/proc/self/status").read())[1]) / 1024
open("/proc/self/clear_refs", "w").write("5")  # the peak starts anew
before, began, used = held("VmRSS"), time.perf_counter(), time.process_time()
try:
    pv.load(sys.argv[1])
    kind = "LOADED"
except Exception as error:
    kind = type(error).__name__ if isinstance(error, pv.PplVaeError) else "OTHER " + type(error).__name__
print(kind, time.perf_counter() - began, time.process_time() - used, held("VmHWM") - before)
"""


def victim(root: Path) -> Path:
    """A small saved model, to be made hostile."""
    pv.save(pv.build(X, latent=2, hidden=(3,)), root / "model")
    return root / "model"


def hostile(only: str | None = None) -> int:
    """Load each hostile folder in a process of its own. Returns how many were not refused in a second and 200 MB."""
    rows = []
    for name, write in HOSTILE.items():
        if only in (None, name):
            with tempfile.TemporaryDirectory() as root:
                folder, canary = victim(Path(root)), Path(root) / "canary"
                write(folder, canary)
                run = subprocess.run(
                    [sys.executable, "-c", ATTACKED, str(folder)], capture_output=True, text=True, timeout=120
                )
                *kind, seconds, cpu, megabytes = run.stdout.split() or ["CRASHED", "nan", "nan", "nan"]
                rows.append((name, " ".join(kind), float(seconds), float(cpu), float(megabytes), canary.exists()))
    frame = pd.DataFrame(rows, columns=["folder", "error", "seconds", "of CPU", "MB beyond the import", "canary"])
    print(frame.round(3).to_markdown(index=False))
    ours = frame.error.isin([e.__name__ for e in (pv.ModelFileError, pv.MissingFileError, pv.OptionError)])
    good = ours & (frame["of CPU"] < 1) & (frame.seconds < 10) & (frame["MB beyond the import"] < 200) & ~frame.canary
    seconds, cpu, megabytes = frame.iloc[:, 2:5].max()
    worst = f"worst {seconds:.2f} s by the clock, {cpu:.2f} s of CPU, {megabytes:.0f} MB"
    print(f"\n{good.sum()} of {len(frame)} refused in time; {worst}")
    return int((~good).sum())


def bad(name: str) -> bool:
    """Whether an outcome is one that must not be: these are in capitals."""
    return any(word in name for word in ("OTHER", "LOADED", "ERROR OF", "UNREADABLE"))


def show(*found: Counter[str]) -> int:
    """Print counts; returns how many are of what must not be."""
    for name, count in (pair for counts in found for pair in sorted(counts.items())):
        print(f"{count:6d}  {name}")
    return sum(count for counts in found for name, count in counts.items() if bad(name))


def main() -> None:
    """Run one of the parts."""
    parser = argparse.ArgumentParser()
    parser.add_argument("part", choices=["registry", "kill", "mutations", "hostile"])
    parser.add_argument("argument", nargs="?")
    part, argument = vars(parser.parse_args()).values()
    began = time.perf_counter()
    if part in ("registry", "hostile"):
        wrong = {"registry": registry, "hostile": hostile}[part](argument)
    elif part == "kill":
        wrong = show(killed(int(argument or 50)))
    else:
        times = int(argument or 10_000)
        wrong = show(mutations(times), forged(times // 5))
    print(f"{wrong} of what must not be; {time.perf_counter() - began:.0f} s")
    raise SystemExit(bool(wrong))


if __name__ == "__main__":
    main()
