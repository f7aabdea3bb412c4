"""Published checkpoints by name: `BEATs_iter3`, `OpenBEATs-Base-i3`, …, fetched once into the user's cache folder.

The links that BEATs' authors give have been closed since 2024. Three repositories on the Hugging Face Hub hold copies
of their files; the digests say that these are the same.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from scoring.errors import InputError

_MIRRORS = (
    "lpepino/beats_ckpts/resolve/5b53b0404df452a3a607d7e67687227730e5bad1",
    "mooneyko/BEATs/resolve/18cfdf9d43820b2db86c6dfde4ae2f7531d1f5ad",
    "datasets/Bencr/beats-checkpoints/resolve/main",
)
_DIGESTS = {
    "BEATs_iter1": "b5f4cc10bcbff63a437c695f33389e6411513b3f7d5cdae8fb62b5005f4a1fcd",
    "BEATs_iter2": "81a23e00aa4878d7e8627ded87ea697fb347c8ceffed21223e0398ed0fa34ad8",
    "BEATs_iter3": "8d1b234032a9ccff353612dc6c20982346dc2968b205b79d97303eb5e77bfb34",
    "BEATs_iter3_plus_AS20K": "8008b126bb5e8ab08912c60c58847ed676d32e64a5864c922356b7c2522fb2f8",
    "BEATs_iter3_plus_AS2M": "d43cbfad4d7b56381c061d7a24774f908d4d94c72961f6eb1d9090ff18cd8d34",
    "BEATs_iter3_finetuned_on_AS2M_cpt1": "379369a41d0b3749f746cdcea8036de506cb3aedecce84de7db0a75fda2a4fe7",
    "BEATs_iter3_finetuned_on_AS2M_cpt2": "08374f1cbd49143900b351bc81cd307de386a11f8e609eb3862634e992068b55",
    "BEATs_iter3_plus_AS2M_finetuned_on_AS2M_cpt1": "7f9362028ac6e5c049e8dc314d87e90e4f82a15a8e472deb56af55d7f9b34d6a",
    "BEATs_iter3_plus_AS2M_finetuned_on_AS2M_cpt2": "e5815275a04b6885e7b8af63d120b29bffae2cd2225cf4915e1ec6d819d3022c",
}


@dataclass(frozen=True)
class Backbone:
    """A published checkpoint.

    size: in bytes; of OpenBEATs about
    source: where it is described
    sha256: None if only the Hub states it (OpenBEATs)
    """

    name: str
    size: int
    licence: str
    source: str
    sha256: str | None = None


BACKBONES = {
    backbone.name: backbone
    for backbone in (
        *(
            Backbone(name, 363_145_291 if "finetuned" in name else 361_499_833, "MIT", "arXiv:2212.09058", sha256)
            for name, sha256 in _DIGESTS.items()
        ),
        *(
            Backbone(f"OpenBEATs-{width}-i{iteration}", size, "open", f"shikhar7ssu/OpenBEATs-{width}-i{iteration}")
            for width, size in (("Base", 370_000_000), ("Large", 1_270_000_000))
            for iteration in (1, 2, 3)
        ),
    )
}


def cache_folder() -> Path:
    """Where what is fetched is kept: `$TUTTI_CACHE`, else `tutti` in the user's cache folder."""
    user = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("TUTTI_CACHE") or Path(user) / "tutti")


def cached(name: str) -> Path:
    """Where the checkpoint of this name is kept, whether it is there or not."""
    return cache_folder() / f"{name}.pt"


def fetched(backbone: Backbone) -> Path:
    """The file of a checkpoint, fetched unless it is in the cache.

    `$HF_ENDPOINT` names another host than https://huggingface.co with the same repositories.

    Raises InputError in one line: what none of the addresses gave, its digest, and what to do instead.
    """
    from branches.downloads import download  # needs requests, which take a while to load

    target = cached(backbone.name)
    if target.exists():
        return target
    hub = (os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")
    sha256 = backbone.sha256
    try:
        if sha256 is not None:
            urls, size = [f"{hub}/{mirror}/{target.name}" for mirror in _MIRRORS], backbone.size
        else:
            urls, size, sha256 = _stated(hub, backbone.source)
        return download(target, urls, f"sha256:{sha256}", size)
    except InputError as error:
        digest = f" with sha256 {sha256}" if sha256 else ""
        repositories = _MIRRORS if backbone.sha256 else (f"{backbone.source}/",)
        sources = ", ".join(path.partition("/resolve")[0].rstrip("/") for path in repositories)
        raise InputError(
            f"{backbone.name}: {error}; put {target.name}{digest} at {target}, or give its path as the backbone. It is "
            f"on huggingface.co in {sources}; HF_ENDPOINT names a mirror of it"
        ) from None


def _stated(hub: str, repository: str) -> tuple[list[str], int, str]:
    """Address, size and digest of the checkpoint in a repository of OpenBEATs, as the Hub states them at this time.

    It lies some folders deep, beside logs and configurations.
    """
    from branches.downloads import document

    about = document(f"{hub}/api/models/{repository}?blobs=true")
    try:
        files = {file["rfilename"]: file for file in about["siblings"]}
        checkpoints = [name for name in files if name.endswith((".pt", ".pth"))]
        # Of several the one that the training ended with.
        name = min(checkpoints, key=lambda name: ("latest" not in name, not name.endswith(".pt"), name))
        blob = files[name]["lfs"]
        return [f"{hub}/{repository}/resolve/{about['sha']}/{quote(name)}"], blob["size"], blob["sha256"]
    except (ValueError, LookupError, TypeError):
        raise InputError(f"{hub}/{repository} lists no checkpoint with a digest") from None
