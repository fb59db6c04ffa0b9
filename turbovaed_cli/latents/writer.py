"""Write a latent cache, shard by shard."""

import hashlib
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from turbovaed_cli.errors import SettingsError
from turbovaed_cli.files.locks import hold_lock
from turbovaed_cli.files.sealed import sealed
from turbovaed_cli.files.whole import sha256_of, whole_files, write_whole
from turbovaed_cli.latents.cache import ClipSource, check_manifest, read_shard


class CacheWriter:
    """Adds clips to a cache folder, shard by shard, from any thread; a context manager whose exit commits the open shard."""

    def __init__(
        self,
        root: Path,
        made_by: Mapping[str, Any],
        shard_mb: int,
        parts: int = 1,
        on_commit: Callable[[Path], None] = lambda _: None,
        *,
        tf32: bool = False,
    ) -> None:
        """Open or create the cache in `root`. Raises SettingsError if its settings are other than `made_by`.

        `parts` is the number of parts of a new cache; `self.parts` is the actual one. `on_commit` is called with each shard.
        `tf32` is recorded with each shard if the latents were computed in TF32.
        """
        self.root = root
        self.shards = root / "shards"
        self.max_bytes = shard_mb * 1_000_000
        self._on_commit = on_commit
        self._how: dict[str, Any] = {"tf32": True} if tf32 else {}
        self._part = 0
        self._tensors: dict[str, Tensor] = {}
        self._clips: list[dict[str, Any]] = []
        self._bytes = 0
        self._lock = threading.RLock()
        self.parts = int(_agree_on_manifest(root, made_by, parts).get("parts", 1))
        # Shards of an earlier turbovaed belong to no part.
        self._of_no_part = self._keys("[!p]*.json")

    def committed(self, part: int) -> set[str]:
        """Return the keys of the clips that a part has. Only the process that holds the part adds to them."""
        return self._of_no_part | self._keys(f"part-{part:03}-*.json")

    def _keys(self, pattern: str) -> set[str]:
        return {clip["key"] for path in whole_files(self.shards, pattern) for clip in read_shard(path)["clips"]}

    def add_all(self, clips: Sequence[tuple[ClipSource, Tensor, Tensor, Tensor]], part: int = 0) -> None:
        """Add clips of one part that were encoded together: mean (C, t, h, w), std (C or 1, t, h, w), video (T, H, W, 3) uint8 each.

        A shard never ends between them, so that a rerun makes the same batches.
        """
        with self._lock:
            if part != self._part:
                self.commit()
                self._part = part
            for source, mean, std, video in clips:
                key = source.key
                # A std that is equal for all channels is given once, (1, t, h, w), and expanded on reading.
                pieces = {f"{key}.mean": mean, f"{key}.std": std, f"{key}.video": video}
                self._tensors |= {name: value.detach().cpu().contiguous() for name, value in pieces.items()}
                self._clips.append({"key": key, **asdict(source)})
                self._bytes += sum(self._tensors[name].nbytes for name in pieces)
            if self._bytes >= self.max_bytes:
                self.commit()

    def commit(self) -> None:
        """Write the open shard, then the .json that makes it count."""
        with self._lock:
            if self._clips:
                self._commit()

    def _commit(self) -> None:
        digest = hashlib.sha256("".join(clip["key"] for clip in self._clips).encode()).hexdigest()[:16]
        path = self.shards / f"part-{self._part:03}-{digest}.safetensors"
        write_whole(path, lambda temporary: save_file(self._tensors, temporary))
        record = {"file": path.name, "sha256": sha256_of(path), "bytes": path.stat().st_size, **self._how, "clips": self._clips}
        text = sealed(record)
        write_whole(path.with_suffix(".json"), lambda temporary: temporary.write_text(text, encoding="utf-8"))
        self._tensors, self._clips, self._bytes = {}, [], 0
        self._on_commit(path)

    def __enter__(self) -> "CacheWriter":
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        # Also on an error: what was encoded so far is whole, and the next run continues after it.
        self.commit()


def _agree_on_manifest(root: Path, made_by: Mapping[str, Any], parts: int) -> dict[str, Any]:
    """Return the manifest of a cache; write it if there is none. Raises SettingsError if it was made with other settings."""
    path = root / "manifest.json"
    if not path.exists():
        ours = ("shards", "parts", "manifest.json")  # which another process may have written meanwhile
        if root.exists() and any(
            item.name not in ours and not item.name.startswith(".manifest.json.") for item in root.iterdir()
        ):
            raise SettingsError(f"{root} holds other things and no latent cache", "give a new or empty folder as `out`")
        text = sealed({**made_by, "parts": parts})
        while not path.exists():
            with hold_lock(root / "parts" / "manifest.lock") as other:
                if other is None and not path.exists():
                    write_whole(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))
            time.sleep(0.02 if other else 0)
    return check_manifest(root, made_by)
