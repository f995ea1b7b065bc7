"""setup.py, the Detectron2 installer, the CUDA report and the environment report."""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import io
import os
import shutil
import stat
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parent.parent

# The least that compiles in seconds, links torch's libraries and says which torch it was built for.
EXTENSION_SOURCE = """
#include <Python.h>
#include <c10/util/Exception.h>

static PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_C", nullptr, -1, nullptr};

PyMODINIT_FUNC PyInit__C() {
  TORCH_CHECK(true);
  PyObject* module = PyModule_Create(&definition);
  PyModule_AddStringConstant(module, "torch", CORRDET_TORCH_VERSION);
  return module;
}
"""


def load(path: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"loaded_{Path(path).stem}", ROOT / path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def setup_py(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    for name in ("CORRDET_CUDA", "CUDA_HOME", "CUDA_PATH", "TORCH_CUDA_ARCH_LIST", "CXX"):
        monkeypatch.delenv(name, raising=False)
    return load("setup.py")


@pytest.fixture(scope="module")
def installer() -> ModuleType:
    return load("tools/install_detectron2.py")


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A copy of the project with one small source file, so that builds take seconds."""
    project = tmp_path / "project"
    (project / "corrdet").mkdir(parents=True)
    (project / "corrdet" / "__init__.py").write_text('__version__ = "0.1.0"\n')
    (project / "csrc").mkdir()
    (project / "csrc" / "corrdet.cpp").write_text(EXTENSION_SOURCE)
    (project / "README.md").touch()
    for name in ("setup.py", "pyproject.toml", "train_net.py", "LICENSE"):
        shutil.copy(ROOT / name, project)
    shutil.copytree(ROOT / "configs/quick", project / "configs/quick")
    return project


@pytest.fixture
def tools_only(tmp_path: Path) -> Path:
    """A folder for PYTHONPATH with pip and setuptools, and nothing else of this environment."""
    folder = tmp_path / "tools_only"
    folder.mkdir()
    for name in ("pip", "setuptools", "wheel", "packaging"):
        for file in importlib.metadata.files(name):
            top = file.parts[0]
            if top not in ("..", "__pycache__") and not (folder / top).exists():
                (folder / top).symlink_to(Path(file.locate()).parents[len(file.parts) - 1] / top)
    return folder


@pytest.fixture
def bare_python(tmp_path: Path, tools_only: Path) -> SimpleNamespace:
    """A new virtual environment with pip and setuptools, and how to run its interpreter."""
    venv = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", venv], check=True)
    environment = {**os.environ, "PYTHONPATH": str(tools_only), "PIP_NO_INDEX": "1"}

    def run(*arguments, **variables) -> subprocess.CompletedProcess:
        command = [venv / "bin" / "python", *arguments]
        return run_shown(command, {**environment, **variables}, tmp_path)

    return SimpleNamespace(run=run, packages=tools_only)


def run_shown(command, environment, folder) -> subprocess.CompletedProcess:
    """Run with stdout and stderr in one text, where they are seen if the test fails."""
    result = subprocess.run(
        command,
        env=environment,
        cwd=folder,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    print(result.stdout)
    return result


def write_script(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


def make_toolkit(home: Path, release: str) -> Path:
    write_script(
        home / "bin" / "nvcc", f"#!/bin/sh\necho 'Cuda compilation tools, release {release}, V1'\n"
    )
    return home


def fake_torch(cuda: str | None, capabilities: tuple[tuple[int, int], ...] = ()) -> SimpleNamespace:
    return SimpleNamespace(
        __version__="2.11.0",
        version=SimpleNamespace(cuda=cuda),
        cuda=SimpleNamespace(
            is_available=lambda: bool(capabilities),
            device_count=lambda: len(capabilities),
            get_device_capability=lambda device: capabilities[device],
        ),
    )


# setup.py: what it builds against


def test_install_without_torch_says_what_to_do(project, bare_python):
    result = bare_python.run(
        "-m", "pip", "install", "--no-build-isolation", "--no-deps", str(project)
    )
    assert result.returncode != 0
    assert "corrdet: no torch in the environment of" in result.stdout
    assert "Traceback" not in result.stdout


def test_a_package_without_the_extension_needs_neither_torch_nor_compiler(project, bare_python):
    command = ["-m", "pip", "wheel", "--no-build-isolation", "--no-deps", "-w", "dist", "."]
    script = (
        f"import os, runpy, sys; os.chdir({str(project)!r}); sys.argv = {['pip', *command[2:]]}"
    )
    script += "; runpy.run_module('pip', run_name='__main__')"
    result = bare_python.run("-c", script, CXX="none", CORRDET_EXTENSION="0")
    assert result.returncode == 0
    (wheel,) = (project / "dist").glob("corrdet-*.whl")
    assert wheel.name.endswith("-py3-none-any.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert "corrdet/configs_installed/quick/retinanet_concordance.yaml" in names
    assert not any("_C" in name for name in names)


def test_metadata_needs_neither_torch_nor_compiler(project, bare_python):
    script = f"import os, runpy, sys; os.chdir({str(project)!r}); sys.argv = ['setup.py', 'sdist']"
    script += "; runpy.run_path('setup.py', run_name='__main__')"
    assert bare_python.run("-c", script, CXX="none").returncode == 0
    (sdist,) = (project / "dist").glob("corrdet-*.tar.gz")
    with tarfile.open(sdist) as archive:
        assert any(name.endswith("csrc/corrdet.cpp") for name in archive.getnames())


def test_a_source_distribution_has_all_that_is_in_the_repository(tmp_path):
    command = [sys.executable, "setup.py", "-q", "sdist", "--dist-dir", tmp_path]
    # egg_info writes beside what it describes.
    source = tmp_path / "source"
    listed = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, text=True, capture_output=True, check=True
    ).stdout.splitlines()
    for name in filter(lambda name: (ROOT / name).is_file(), listed):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, source / name)
    assert run_shown(command, os.environ, source).returncode == 0
    (sdist,) = tmp_path.glob("corrdet-*.tar.gz")
    with tarfile.open(sdist) as archive:
        packed = {name.partition("/")[2] for name in archive.getnames()}
    left_out = {name for name in listed if not name.startswith(".")} - packed
    assert left_out == set()


def test_losses_and_operators_need_torch_and_numpy_alone():
    metadata = (ROOT / "pyproject.toml").read_text()
    assert '\ndependencies = ["torch>=2.4", "numpy>=1.24"]\n' in metadata


def repack(name: str, folder: Path) -> None:
    """Write an installed distribution back into a wheel, so that pip needs no registry."""
    distribution = importlib.metadata.distribution(name)
    version = distribution.version
    tag = distribution.read_text("WHEEL").split("Tag: ")[1].split()[0]
    with zipfile.ZipFile(folder / f"{name}-{version}-{tag}.whl", "w") as wheel:
        for file in distribution.files:
            if file.suffix == ".pyc" or not file.locate().is_file():
                continue
            path = file.as_posix()
            if path.startswith(".."):
                path = f"{name}-{version}.data/scripts/{file.name}"
            wheel.write(file.locate(), path)


def test_isolated_build_uses_the_environments_torch(project, tmp_path):
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    for name in ("setuptools", "wheel", "packaging", "ninja"):
        repack(name, wheels)
    environment = {
        **os.environ,
        "CORRDET_CUDA": "0",
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": str(wheels),
    }
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--wheel-dir", "dist", "."]
    assert run_shown(command, environment, project).returncode == 0

    (wheel,) = (project / "dist").glob("corrdet-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "installed")
    assert (tmp_path / "installed/corrdet/configs_installed/quick").is_dir()
    script = "import torch, corrdet._C; print(corrdet._C.torch, corrdet._C.__file__)"
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "installed")}
    result = run_shown([sys.executable, "-c", script], environment, tmp_path)
    version, path = result.stdout.split()
    assert version == torch.__version__
    assert path.startswith(str(tmp_path))


def test_editable_install_is_found_beside_a_clone_of_its_name(project, tmp_path):
    # Where the folder of the clone is itself named corrdet, Python takes it for a package without
    # __init__.py, unless the installed one comes first.
    clone = project.rename(tmp_path / "corrdet")
    with (clone / "corrdet" / "__init__.py").open("a") as file:
        file.write("name = 'the real one'\n")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv"], check=True)
    python = tmp_path / "venv" / "bin" / "python"
    (site_packages,) = (tmp_path / "venv" / "lib").glob("python*/site-packages")
    # The packages of this environment, but not the finder of a corrdet that is installed in it.
    (site_packages / "tests_own.pth").write_text(sysconfig.get_path("purelib") + "\n")
    command = [python, "-m", "pip", "install", "--no-build-isolation", "--no-deps", "-e", clone]
    environment = {**os.environ, "CORRDET_CUDA": "0", "PIP_NO_INDEX": "1"}
    assert run_shown(command, environment, tmp_path).returncode == 0

    script = "import torch, corrdet, corrdet._C; print(corrdet.name)"
    result = run_shown([python, "-c", script], environment, tmp_path)
    assert result.stdout == "the real one\n"


def test_build_without_compiler_says_what_to_do(project):
    environment = {**os.environ, "PATH": str(project), "CORRDET_CUDA": "0"}
    environment.pop("CXX", None)
    result = run_shown([sys.executable, "setup.py", "build_ext"], environment, project)
    assert result.returncode != 0
    assert "corrdet: no C++ compiler: looked for c++, g++, clang++" in result.stdout
    assert "Traceback" not in result.stdout


def test_compiler_of_cxx_is_named_when_missing(setup_py, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler -m64")
    with pytest.raises(SystemExit, match="looked for no-such-compiler -m64"):
        setup_py.find_compiler()


# setup.py: CUDA


@pytest.mark.parametrize("mode", ["auto", "1"])
def test_other_cuda_major_is_refused(setup_py, monkeypatch, tmp_path, mode):
    monkeypatch.setenv("CORRDET_CUDA", mode)
    monkeypatch.setenv("CUDA_HOME", str(make_toolkit(tmp_path / "cuda", "11.8")))
    with pytest.raises(SystemExit, match=r"CUDA 11\.8.*CUDA 13\.0.*CUDA_HOME.*CORRDET_CUDA=0"):
        setup_py.choose_cuda(fake_torch("13.0"))


@pytest.mark.parametrize("mode", ["auto", "1"])
def test_other_cuda_minor_is_taken(setup_py, monkeypatch, tmp_path, mode):
    home = make_toolkit(tmp_path / "cuda", "13.1")
    monkeypatch.setenv("CORRDET_CUDA", mode)
    monkeypatch.setenv("CUDA_HOME", str(home))
    assert setup_py.choose_cuda(fake_torch("13.0")) == home


def test_cuda_can_be_switched_off(setup_py, monkeypatch, tmp_path):
    monkeypatch.setenv("CORRDET_CUDA", "0")
    monkeypatch.setenv("CUDA_HOME", str(make_toolkit(tmp_path / "cuda", "11.8")))
    assert setup_py.choose_cuda(fake_torch("13.0")) is None


@pytest.mark.parametrize("cuda", [None, "13.0"])
def test_missing_cuda_is_an_error_only_where_asked_for(setup_py, monkeypatch, tmp_path, cuda):
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    assert setup_py.choose_cuda(fake_torch(cuda)) is None
    monkeypatch.setenv("CORRDET_CUDA", "1")
    with pytest.raises(SystemExit, match="build without CUDA" if cuda is None else "no nvcc"):
        setup_py.choose_cuda(fake_torch(cuda))


def test_unknown_cuda_mode_is_refused(setup_py, monkeypatch):
    monkeypatch.setenv("CORRDET_CUDA", "yes")
    with pytest.raises(SystemExit, match="'yes'; it can be auto, 0 or 1"):
        setup_py.choose_cuda(fake_torch("13.0"))


def test_toolkit_is_found_on_path(setup_py, monkeypatch, tmp_path):
    home = make_toolkit(tmp_path / "cuda", "13.0")
    (home / "include").mkdir()
    (home / "include" / "cuda_runtime_api.h").touch()
    monkeypatch.setenv("PATH", str(home / "bin"))
    assert setup_py.find_cuda_home() == home


def test_architectures(setup_py, monkeypatch):
    assert setup_py.architectures(fake_torch("13.0")) == "8.0;9.0+PTX"
    assert setup_py.architectures(fake_torch("13.0", ((9, 0), (8, 6), (9, 0)))) == "8.6;9.0"
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "7.5 8.0+PTX")
    assert setup_py.architectures(fake_torch("13.0", ((9, 0),))) == "7.5 8.0+PTX"


# The CUDA report

PTXAS_LINES = """\
ptxas info    : Compiling entry function '_Z6kernelPf' for 'sm_80'
ptxas info    : Function properties for _Z6kernelPf
    {stack} bytes stack frame, {stack} bytes spill stores, {stack} bytes spill loads
ptxas info    : Used 18 registers, used 1 barriers, 672 bytes smem, 364 bytes cmem[0]
"""


def test_nvcc_messages_are_kept_beside_the_object(tmp_path):
    messages = "x.cu(1): error: no\n" + PTXAS_LINES.format(stack=0)
    nvcc = f"#!/bin/sh\ncat >&2 <<'END'\n{messages}END\nexit 3\n"
    write_script(tmp_path / "cuda" / "bin" / "nvcc", nvcc)
    command = [ROOT / "tools" / "nvcc.sh", "-c", "x.cu", "-o", "x.o", "-O3"]
    environment = {**os.environ, "CUDA_HOME": str(tmp_path / "cuda")}
    result = run_shown(command, environment, tmp_path)
    assert result.returncode == 3
    assert result.stdout == "x.cu(1): error: no\n"
    (kernel,) = load("tools/cuda_report.py").read_log((tmp_path / "x.o.log").read_text())
    assert kernel == ("_Z6kernelPf", "sm_80", 18, 672, 0, 0)


@pytest.mark.parametrize(("stack", "status"), [(0, 0), (8, 1)])
def test_report_fails_on_spills(tmp_path, monkeypatch, capsys, stack, status):
    report = load("tools/cuda_report.py")
    monkeypatch.setattr(report, "ROOT", tmp_path)
    write_script(tmp_path / "csrc" / "op" / "op_cuda.cu", "")
    assert report.main() == 1
    assert "not compiled with CUDA here" in capsys.readouterr().out
    log = tmp_path / "build" / "objects" / "csrc" / "op" / "op_cuda.o.log"
    write_script(log, PTXAS_LINES.format(stack=stack))
    assert report.main() == status
    assert f"1 kernels, {status} spill registers" in capsys.readouterr().out


# The Detectron2 installer


def make_sdist(path: Path) -> Path:
    files = {
        "LICENSE": "the licence",
        "setup.py": "raise SystemExit('setup.py was run')",
        "detectron2/__init__.py": "",
        "detectron2/data.py": "x = np.zeros(2, dtype=np.bool).astype(np.float)\ny = np.bool_\n",
        "projects/PointRend/point_rend/__init__.py": "z = Image.LINEAR\n",
    }
    with tarfile.open(path, "w:gz") as archive:
        for name, text in files.items():
            member = tarfile.TarInfo(f"pb1-detectron2-0.6/{name}")
            member.size = len(text)
            archive.addfile(member, io.BytesIO(text.encode()))
    return path


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("np.array(x, dtype=np.int)", "np.array(x, dtype=int)"),
        ("a.astype(np.object), np.int64, np.float32", "a.astype(object), np.int64, np.float32"),
        ("interp=Image.LINEAR, b=Image.BILINEAR", "interp=Image.BILINEAR, b=Image.BILINEAR"),
        ("mask = np.array(mask, copy=False)", "mask = np.asarray(mask)"),
        ("use_fast_impl=True,", "use_fast_impl=False,"),
        ("import os\nimport pkg_resources\nimport torch\n", "import os\nimport torch\n"),
        (
            'f = pkg_resources.resource_filename(\n        "detectron2.model_zoo", '
            'os.path.join("configs", config_path)\n    )',
            'f = os.path.join(os.path.dirname(__file__), "configs", config_path)',
        ),
    ],
)
def test_removed_names_are_replaced(installer, old, new):
    assert installer.modernize(old) == new


def test_wheel_installs_as_detectron2(installer, tmp_path):
    files = installer.read_sdist(make_sdist(tmp_path / "sdist.tar.gz"))
    wheel = installer.write_wheel(files, tmp_path)
    target = tmp_path / "target"
    command = [sys.executable, "-m", "pip", "install", "--no-index", "--no-deps", "--target"]
    assert run_shown([*command, target, wheel], os.environ, tmp_path).returncode == 0

    (distribution,) = importlib.metadata.distributions(name="detectron2", path=[str(target)])
    assert distribution.version == installer.VERSION
    assert "fvcore>=0.1.5" in distribution.requires
    assert any(file.name == "LICENSE" for file in distribution.files)
    assert "dtype=bool).astype(float)" in (target / "detectron2" / "data.py").read_text()
    assert (target / "detectron2" / "projects" / "point_rend" / "__init__.py").is_file()

    script = (
        "from detectron2 import _C\n"
        "assert hasattr(_C, 'box_iou_rotated') and not hasattr(_C, '__path__')\n"
        "print(_C.get_compiler_version())\n"
        "try:\n    _C.box_iou_rotated(1, 2)\n"
        "except NotImplementedError as error:\n    print(error)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(target)}
    result = run_shown([sys.executable, "-c", script], environment, tmp_path)
    assert result.returncode == 0
    assert "detectron2._C.box_iou_rotated is compiled code" in result.stdout


def test_changed_archive_is_refused_and_nothing_installed(bare_python, tmp_path):
    # The installer asks for torch; an empty package is enough to come to the download.
    (bare_python.packages / "torch").mkdir()
    (bare_python.packages / "torch" / "__init__.py").touch()
    sdist = make_sdist(tmp_path / "pb1-detectron2-0.6.tar.gz")
    script = ROOT / "tools" / "install_detectron2.py"
    result = bare_python.run(script, PIP_FIND_LINKS=str(tmp_path))
    assert result.returncode == 1
    for text in (load("tools/install_detectron2.py").SDIST_SHA256, "Nothing was installed"):
        assert text in result.stdout
    assert hashlib.sha256(sdist.read_bytes()).hexdigest() in result.stdout
    assert "setup.py was run" not in result.stdout
    assert bare_python.run("-c", "import detectron2").returncode != 0


def test_failed_download_says_what_was_expected(bare_python):
    (bare_python.packages / "torch").mkdir()
    (bare_python.packages / "torch" / "__init__.py").touch()
    result = bare_python.run(ROOT / "tools" / "install_detectron2.py")
    assert result.returncode == 1
    assert "Could not download pb1-detectron2==0.6 with sha256" in result.stdout
    assert "Traceback" not in result.stdout


def test_installer_asks_for_torch(bare_python):
    result = bare_python.run(ROOT / "tools" / "install_detectron2.py")
    assert result.returncode == 1
    assert "error: torch must be installed first" in result.stdout


def test_check_sha256_names_both(installer, tmp_path):
    (tmp_path / "file").write_bytes(b"other")
    with pytest.raises(installer.InstallError, match="expected sha256 5d2e.*, got d9298a10"):
        installer.check_sha256(tmp_path / "file")


@pytest.mark.parametrize("arguments", [[], ["--source"]])
def test_installed_detectron2_is_kept(bare_python, arguments):
    (bare_python.packages / "detectron2").mkdir()
    (bare_python.packages / "detectron2" / "__init__.py").touch()
    result = bare_python.run(ROOT / "tools" / "install_detectron2.py", *arguments)
    assert result.returncode == 0
    assert "Detectron2 is already installed" in result.stdout
    assert "pip" not in result.stdout


def test_source_is_compiled_without_isolation(installer, monkeypatch):
    calls = []
    monkeypatch.setattr(installer.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(installer, "pip", lambda *arguments: calls.append(arguments))
    assert installer.main(["--source"]) == 0
    assert installer.main(["--source", "checkout"]) == 0
    options = ("install", "--no-build-isolation")
    assert calls == [(*options, installer.UPSTREAM), (*options, "checkout")]


# The environment report


def test_environment_report_names_versions():
    report = load("corrdet/env.py").collect_env()
    assert torch.__version__ in report
    assert "corrdet._C: compiler" in report
    assert "DETECTRON2_ENV_MODULE" in report


def test_environment_report_survives_what_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "corrdet._C", None)
    monkeypatch.setitem(sys.modules, "detectron2.utils.collect_env", None)
    report = load("corrdet/env.py").collect_env()
    assert "corrdet._C" in report
    assert "not available: ModuleNotFoundError" in report
