"""Another git revision of the project, checked out and built once, so that its ace_fast can be imported beside ours.

build/revisions/<sha>/tree is a git worktree with its own native library; build/revisions/<sha>/site has its package in
the layout in which it is installed, with kernels and bench inside.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
COMMAND = (sys.executable, "setup.py", "-q", "editable_wheel", "--dist-dir")


def resolve(revision: str, root: Path = ROOT) -> str:
    """The full hash of a revision of the checkout.

    Raises:
        ValueError: this is no git checkout, or it has no such revision.
    """
    if not (root / ".git").exists():
        raise ValueError(f"--compare: bench must run in a git checkout, got {root}; run python -m bench in a clone")
    done = _git(root, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{revision}^{{commit}}")
    if done.returncode:
        raise ValueError(f"--compare: REV must be a commit, branch or tag of {root}, got {revision!r}; see git log")
    return done.stdout.strip()


def prepare(revision: str, root: Path = ROOT) -> Path:
    """The folder to put on PYTHONPATH for the ace_fast of `revision`, built if it is not there yet.

    Raises:
        ValueError: the revision is unknown or does not build; the message has the builder's last lines.
    """
    sha = resolve(revision, root)
    folder = root / "build" / "revisions" / sha[:12]
    tree, site = folder / "tree", folder / "site"
    if site.exists():
        return site
    if folder.exists():  # an earlier build was interrupted
        shutil.rmtree(folder)
    _git(root, "worktree", "prune")
    folder.mkdir(parents=True)
    done = _git(root, "worktree", "add", "--quiet", "--detach", str(tree), sha)
    if done.returncode:
        raise ValueError(f"--compare: git could not check out {revision}: {done.stderr.strip()}")
    _build(revision, tree, folder / "wheel")
    for inner in ("kernels", "bench"):
        (tree / "ace_fast" / inner).symlink_to(f"../{inner}")
    staged = folder / "staged"  # the folder's name says that all is there
    staged.mkdir()
    (staged / "ace_fast").symlink_to("../tree/ace_fast")
    staged.rename(site)
    return site


def _git(root: Path, *arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True)


def _build(revision: str, tree: Path, wheel: Path) -> None:
    """Compiles the native libraries in place, as an editable installation does, and installs nothing."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    done = subprocess.run([*COMMAND, str(wheel)], cwd=tree, capture_output=True, text=True,
                          env=os.environ | {"PATH": path})
    said = (done.stdout + done.stderr).strip().splitlines()
    note = tree / "ace_fast" / "lib" / "missing.txt"
    missing = note.read_text().strip() if note.exists() else ""
    if done.returncode or missing:
        raise ValueError(f"--compare: the native library of {revision} did not build: "
                         f"{missing or ' | '.join(said[-3:])}")
