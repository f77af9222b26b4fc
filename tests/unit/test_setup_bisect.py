"""scripts/bisect: tries both ends first, names the first bad commit, and leaves nothing behind.

The labs are `make lab` of a small repository, which copies a record; the judge is the real one.
"""

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support import oracle_cases

ROOT = Path(__file__).resolve().parents[2]
MAKEFILE = """\
lab:
\t@cat state
\t@test -d {records}/$$(cat state)
\t@mkdir -p $(RUN_DIR)
\t@cp -r {records}/$$(cat state)/. $(RUN_DIR)/
\t@test $(SEED) = 3
clean-lab:
"""
Bisect = Callable[..., subprocess.CompletedProcess[str]]


def git(folder: Path, *words: str) -> str:
    names = ["-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "init.defaultBranch=main"]
    command = ["git", *names, "-C", str(folder), *words]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that is as expected, one that is not, and one that proves nothing."""
    folder = tmp_path_factory.mktemp("records")
    oracle_cases.activate().save(folder / "good" / "activate-off-s7")
    lab = oracle_cases.overlap()
    lab.expected = "consistent"
    lab.save(folder / "bad" / "overlap-off-s7")
    for name in ("good", "bad"):
        command = [str(ROOT / ".venv/bin/vhdtool"), "judge", "--json", str(folder / name)]
        found = subprocess.run(command, check=False, capture_output=True)
        (folder / name / "verdict.json").write_bytes(found.stdout)
    (folder / "open").mkdir()
    verdict = '{"schema": 1, "error": "beta: unreachable", "asked": [], "strategies": []}'
    (folder / "open" / "verdict.json").write_text(verdict)
    return folder


@pytest.fixture
def history(tmp_path: Path, records: Path) -> Callable[..., Path]:
    def make(*states: str) -> Path:
        """A repository with a commit for each state, tagged 0, 1, ..."""
        folder = tmp_path / "repository"
        folder.mkdir()
        git(folder, "init", "--quiet")
        (folder / "Makefile").write_text(MAKEFILE.format(records=records))
        (folder / ".gitignore").write_text("/build/\n")
        for number, state in enumerate(states):
            (folder / "state").write_text(f"{state}\n")
            (folder / "number").write_text(f"{number}\n")
            git(folder, "add", "-A")
            git(folder, "commit", "--quiet", "-m", f"Commit {number}")
            git(folder, "tag", f"v{number}")
        return folder

    return make


def bisect(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(ROOT / "scripts/bisect"), *words],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def untouched(folder: Path) -> bool:
    """Whether the user's checkout is as it was, with no work tree and no bisection left."""
    alone = git(folder, "worktree", "list").count("\n") == 0
    clean = git(folder, "status", "--porcelain") == ""
    on_main = git(folder, "rev-parse", "--abbrev-ref", "HEAD") == "main"
    return alone and clean and on_main and not git(folder, "for-each-ref", "refs/bisect")


def test_the_first_bad_commit_is_named(history: Callable[..., Path]) -> None:
    folder = history("good", "good", "open", "bad", "bad", "bad")
    done = bisect(folder, "v1", "v5", "SEED=3")
    # The commit before the first bad one proves nothing, so it cannot be decided between the two.
    assert done.returncode == 1, done.stderr
    assert "not decided; one of these commits is the first bad one:" in done.stderr
    assert "Commit 2" in done.stderr
    assert "Commit 3" in done.stderr
    assert "Commit 4" not in done.stderr
    done = bisect(folder, "v0", "v3", "SEED=3")
    assert "Commit 2" in done.stderr
    assert untouched(folder)


def test_with_a_verdict_everywhere_it_is_one_commit(history: Callable[..., Path]) -> None:
    folder = history("good", "good", "good", "bad", "bad", "bad")
    done = bisect(folder, "v0", "HEAD", "SEED=3")
    assert done.returncode == 0, done.stderr
    assert "is the first bad commit" in done.stdout
    assert "Commit 3" in done.stdout
    assert untouched(folder)
    short = git(folder, "rev-parse", "--short", "v3")
    assert (folder / "build" / "bisect" / short / "verdict.json").exists()


@pytest.mark.parametrize(
    ("states", "words"),
    [
        (("bad", "bad", "bad"), "the good end is not good: nothing was bisected"),
        (("good", "good", "good"), "the bad end is not bad: nothing was bisected"),
        (("open", "good", "bad"), "the lab proves nothing there"),
        (("none", "good", "bad"), "no run has begun; the end of"),
    ],
)
def test_a_wrong_end_is_seen_first(
    history: Callable[..., Path], states: tuple[str, ...], words: str
) -> None:
    folder = history(*states)
    done = bisect(folder, "v0", "v2", "SEED=3")
    assert done.returncode == 1
    assert words in done.stderr
    middle = git(folder, "rev-parse", "--short", "v1")
    assert not (folder / "build" / "bisect" / middle).exists()
    assert untouched(folder)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("v0", "SEED=3"), "name the good and the bad commit, then the options"),
        (("nope", "v1"), "nope: no such commit"),
        (("v1", "v0"), "v1 is no ancestor of v0"),
        (("v1", "v1"), "v1 and v1 are one commit"),
    ],
)
def test_wrong_commits_are_one_line(
    history: Callable[..., Path], words: tuple[str, ...], message: str
) -> None:
    folder = history("good", "bad")
    done = bisect(folder, *words)
    assert done.returncode == 1
    assert done.stderr.strip() == f"bisect: {message}"
    assert untouched(folder)


@pytest.mark.parametrize(("state", "code"), [("good", 0), ("bad", 1), ("open", 125), ("none", 125)])
def test_one_lab_has_the_exit_code_for_git(
    history: Callable[..., Path], state: str, code: int
) -> None:
    assert bisect(history(state), "--one", "build/bisect", "SEED=3").returncode == code
