"""`python -m corrdet.env`: what to paste into a bug report."""

import importlib
import importlib.metadata
import platform


def collect_env() -> str:
    """Return a table of versions and build options, then Detectron2's own report.

    It never raises: what cannot be imported is listed with the reason.
    """
    rows = [
        ("corrdet", _version("corrdet")),
        ("Python", platform.python_version()),
        ("torch", _version("torch")),
        ("torchvision", _version("torchvision")),
        *_cuda(),
        *_extension(),
    ]
    width = max(len(name) for name, _ in rows)
    table = "\n".join(f"{name:{width}}  {value}" for name, value in rows)
    return f"{table}\n\nDetectron2's report:\n{_detectron2()}"


def _reason(error: BaseException) -> str:
    first_line = str(error).strip().split("\n")[0]
    return f"{type(error).__name__}: {first_line}"


def _version(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _cuda() -> list[tuple[str, str]]:
    try:
        import torch

        rows = [("CUDA of torch", str(torch.version.cuda))]
        if not torch.cuda.is_available():
            return [*rows, ("GPUs", "none visible")]
        devices = range(torch.cuda.device_count())
        return [*rows, ("GPUs", ", ".join(map(torch.cuda.get_device_name, devices)))]
    except Exception as error:
        return [("CUDA of torch", _reason(error))]


def _extension() -> list[tuple[str, str]]:
    try:
        torch = importlib.import_module("torch")
        backends = importlib.import_module("corrdet.ops._backend")
        devices = ["cpu"] + ["cuda"] * torch.cuda.is_available()
        rows = []
        for device in devices:
            chosen = backends.backend(device)
            reason = backends.why_no_extension(torch.device(device))
            if chosen == "torch" and reason:
                chosen = f"torch, as corrdet._C cannot be used: {reason}"
            rows.append((f"corrdet.ops on {device}", chosen))
        if backends.extension is not None:
            info = backends.extension.build_info()
            rows += [(f"corrdet._C: {key}", str(value)) for key, value in info.items()]
        return rows
    except Exception as error:
        return [("corrdet.ops", _reason(error))]


def _detectron2() -> str:
    try:
        from detectron2.utils.collect_env import collect_env_info

        return collect_env_info()
    except Exception as error:
        return f"not available: {_reason(error)}"


def main() -> None:
    print(collect_env())


if __name__ == "__main__":
    main()
