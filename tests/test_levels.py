"""Lower levels never import higher ones, and heavy libraries stay in their rooms: read from the imports themselves.

The levels are those of the architecture page. A new file must be given its level here.
"""

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "batchseg"
HEAVY = frozenset({"tensorflow", "keras", "ray"})
ROOMS = {
    0: "config knobs model_knobs augment_knobs storage access retries s3 s3_file images classes geometry tiling "
    "metrics boundary image_scores errors",
    1: "datasets doctor augment feed render console presets listing fetching ledger row_index lease clearing digest "
    "outputs verify row_check regions quality runner options columns isolation sanity rle "
    "photometric mixing curves val_sheet event_log journal spot_notice",
    2: "models losses optimizers",
    3: "runtime bundle predict stages results plan_sample batch_norms train_step train_task train_folder "
    "checkpoint_list export",
    4: "cluster capacity sizing board train_worker train_loop train_opening train_plan train "
    "stream segment_job segment evaluate plan",
    5: "demo cli cli_options __main__ __init__",
}
LEVELS = {room: level for level, rooms in ROOMS.items() for room in rooms.split()}
ALLOWED_HEAVY: dict[int, frozenset[str]] = {
    0: frozenset(),
    1: frozenset(),
    2: frozenset({"keras"}),
    3: frozenset({"keras", "tensorflow"}),
    4: HEAVY,
    5: frozenset(),
}
LAZY_RAY = {"console"}  # watch_board asks the board of a running job
JOBS = {"train", "segment", "evaluate"}  # python -m batchseg.train


@dataclass(frozen=True)
class Import:
    """One imported module. lazy: inside a function. as_program: under `if __name__ == "__main__"`."""

    module: str
    line: int
    lazy: bool
    as_program: bool

    @property
    def top(self) -> str:
        return self.module.partition(".")[0]


def list_files() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def name_of(path: Path) -> str:
    """Dotted name of the module in a file."""
    parts = ["batchseg", *path.relative_to(PACKAGE).with_suffix("").parts]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def is_main_guard(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) == "__name__ == '__main__'"


def walk(node: ast.AST, lazy: bool = False, as_program: bool = False) -> Iterator[tuple[ast.AST, bool, bool]]:
    for child in ast.iter_child_nodes(node):
        inner_lazy = lazy or isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        inner_program = as_program or is_main_guard(child)
        yield child, inner_lazy, inner_program
        yield from walk(child, inner_lazy, inner_program)


def name_imports(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        assert node.level == 0, f"line {node.lineno}: imports are absolute"
        # `from batchseg import storage` and `from batchseg.models import encoders` name modules, not things in one.
        return [f"{node.module}.{alias.name}" for alias in node.names]
    return []


@cache
def read_imports(path: Path) -> tuple[Import, ...]:
    found = []
    for node, lazy, as_program in walk(ast.parse(path.read_text(encoding="utf-8"))):
        found += [Import(name, node.lineno, lazy, as_program) for name in name_imports(node)]  # type: ignore[attr-defined]
    return tuple(found)


@cache
def read_public_names() -> dict[str, str]:
    """The names that `batchseg` loads on first use, with their modules."""
    for node in ast.parse((PACKAGE / "__init__.py").read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "_PUBLIC_NAMES":
            return dict(ast.literal_eval(node.value))
    raise AssertionError("batchseg/__init__.py has no _PUBLIC_NAMES")


def find_room(module: str) -> str | None:
    """The room that an imported name lies in; None for names of the package itself (`batchseg.__version__`)."""
    parts = module.split(".")
    if len(parts) == 1:
        return None
    if parts[1] in read_public_names():
        parts = read_public_names()[parts[1]].split(".")
    if (PACKAGE / f"{parts[1]}.py").exists() or (PACKAGE / parts[1]).is_dir() or parts[1] in LEVELS:
        return parts[1]
    assert parts[1].startswith("__"), f"{module}: neither a module nor a name of batchseg"
    return None


def find_file(module: str) -> Path | None:
    """The file that an imported name of ours lies in."""
    parts = module.split(".")[1:]
    for length in range(len(parts), -1, -1):
        base = PACKAGE.joinpath(*parts[:length])
        for path in (base.with_suffix(".py"), base / "__init__.py"):
            if path.exists():
                return path
    return None


def list_reached(start: Path) -> dict[str, str]:
    """Outside libraries that importing a module loads, each with the file that does it; lazy imports do not count."""
    waiting, seen, reached = [start, PACKAGE / "__init__.py"], set(), {}
    while waiting:
        path = waiting.pop()
        if path in seen:
            continue
        seen.add(path)
        if (package := path.parent / "__init__.py").exists():
            waiting.append(package)
        for entry in read_imports(path):
            if entry.lazy or entry.as_program:
                continue
            target = find_file(entry.module) if entry.top == "batchseg" else None
            if target:
                waiting.append(target)
            else:
                reached.setdefault(entry.top, str(path.relative_to(PACKAGE)))
    return reached


def test_every_file_has_a_level() -> None:
    unknown = {room_of(path) for path in list_files()} - set(LEVELS)
    assert not unknown, f"no level for {sorted(unknown)}: add them to ROOMS in {Path(__file__).name}"
    assert sum(len(rooms.split()) for rooms in ROOMS.values()) == len(LEVELS)


@pytest.mark.parametrize("path", list_files(), ids=name_of)
def test_lower_never_imports_higher(path: Path) -> None:
    level = LEVELS[room_of(path)]
    for entry in read_imports(path):
        room = find_room(entry.module) if entry.top == "batchseg" else None
        if room is None:
            continue
        if entry.as_program and room_of(path) in JOBS:
            # `python -m batchseg.train` is the command line itself; nobody who imports the module runs this.
            assert room == "cli", f"{path.name}:{entry.line} imports {entry.module} as a program"
            continue
        assert LEVELS[room] <= level, f"{path.name}:{entry.line} (level {level}) imports {room} (level {LEVELS[room]})"


@pytest.mark.parametrize("path", list_files(), ids=name_of)
def test_heavy_libraries_stay_in_their_rooms(path: Path) -> None:
    room = room_of(path)
    for entry in read_imports(path):
        if entry.top not in HEAVY or (entry.top == "ray" and room in LAZY_RAY and entry.lazy):
            continue
        assert entry.top in ALLOWED_HEAVY[LEVELS[room]], f"{path.name}:{entry.line} imports {entry.module}"


@pytest.mark.parametrize("path", list_files(), ids=name_of)
def test_tensorflow_keras_is_nowhere(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            assert ast.unparse(node) not in ("tf.keras", "tensorflow.keras"), f"{path.name}:{node.lineno}"
    assert not any(entry.module.startswith(("tensorflow.keras", "tf_keras")) for entry in read_imports(path))


@pytest.mark.parametrize("path", list_files(), ids=name_of)
def test_nothing_is_imported_by_its_text(path: Path) -> None:
    """import_module would hide from this test; only the lazy names of the package use it."""
    calls = [ast.unparse(node.func) for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
    hidden = [call for call in calls if call in ("__import__", "import_module", "importlib.import_module")]
    assert not hidden or name_of(path) == "batchseg"


@pytest.mark.parametrize("path", list_files(), ids=name_of)
def test_the_bare_package_is_used_for_what_it_is_only(path: Path) -> None:
    """`import batchseg` may ask for `batchseg.__file__`; `batchseg.train_model` would load a higher level unseen."""
    if any(entry.module == "batchseg" for entry in read_imports(path)):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "batchseg":
                assert node.attr.startswith("__"), f"{path.name}:{node.lineno}"


@pytest.mark.parametrize("room", ["predict", "segment", "evaluate", "stages"])
def test_augmentation_is_for_training_only(room: str) -> None:
    path = PACKAGE / f"{room}.py"
    assert not any(find_room(entry.module) == "augment" for entry in read_imports(path) if entry.top == "batchseg")


@pytest.mark.parametrize("room", [*ROOMS[0].split(), *ROOMS[1].split(), "stages", "cli", "__main__", "__init__"])
def test_light_rooms_load_nothing_heavy(room: str) -> None:
    """CPU stages and the command line start without TensorFlow, Keras or Ray, through whatever they import."""
    path = find_file(f"batchseg.{room}")
    if path is None or room_of(path) != room:
        pytest.skip(f"{room} is not written yet")
    reached = list_reached(path)
    assert not HEAVY & set(reached), {name: reached[name] for name in HEAVY & set(reached)}


@pytest.mark.parametrize("room", ROOMS[2].split())
def test_models_need_keras_alone(room: str) -> None:
    path = find_file(f"batchseg.{room}")
    assert path is not None
    assert not {"tensorflow", "ray"} & set(list_reached(path))


def test_public_names_are_there() -> None:
    for name, module in read_public_names().items():
        path = find_file(module)
        assert path is not None
        tree = ast.parse(path.read_text())
        defined = {node.name for node in tree.body if isinstance(node, (ast.FunctionDef, ast.ClassDef))}
        imported = {entry.module.rpartition(".")[2] for entry in read_imports(path)}
        assert name in defined | imported, f"{module} has no {name}"


def test_the_light_rooms_in_a_fresh_process() -> None:
    """What the imports say is so: also no library that we use brings a heavy one along."""
    rooms = [room for room in [*ROOMS[0].split(), *ROOMS[1].split(), "stages", "cli"] if find_room(f"batchseg.{room}")]
    present = [room for room in rooms if (PACKAGE / f"{room}.py").exists() or (PACKAGE / room).is_dir()]
    code = f"import {', '.join(f'batchseg.{room}' for room in present)}, sys; print(sorted(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=PACKAGE.parent, capture_output=True, text=True, timeout=60, check=True
    )
    assert not {f"'{name}'" for name in HEAVY} & set(done.stdout.strip("[]\n").split(", "))
