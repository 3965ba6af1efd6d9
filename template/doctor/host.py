"""Check disk, temporary folder, ports, model and device of this machine."""

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from template.arguments import check_port
from template.config import load_training_args
from template.data.chat_templates import template_for
from template.doctor.findings import Finding, failed, from_error, passed, warned
from template.doctor.setup import Setup
from template.errors import ConfigError, HostError, RemoteError
from template.files import find_write_problem, temporary_folder
from template.hub.checks import check_model_listed, find_model
from template.hub.client import read_token
from template.training import devices
from template.training.model_files import digest_folder, find_problem

_MIN_TEMPORARY_BYTES = 100 * 10**6
_GPU = "install the torch build of this driver (https://pytorch.org/get-started/locally), or choose --device cpu"


def check_disk(folder: Path, min_free_bytes: int) -> Iterator[Finding]:
    """Check that a folder, or the next one above that exists, takes files and has space."""
    existing = next(path for path in (folder, *folder.parents) if path.is_dir())
    try:
        free = shutil.disk_usage(existing).free
        problem = find_write_problem(existing)
    except OSError as error:
        problem = error.strerror or str(error)
    if problem is not None:
        yield failed(
            "disk", f"{existing} takes no files: {problem}", "correct its owner or mount, or name another folder"
        )
    elif free < min_free_bytes:
        text = f"{free / 1e9:.1f} GB free at {existing}, and {min_free_bytes / 1e9:.1f} GB are needed"
        yield failed("disk", text, "free space, or name a folder on another volume")
    else:
        yield passed("disk", f"{free / 1e9:.1f} GB free at {existing}")


def check_temporary_folder() -> Iterator[Finding]:
    """Check that the temporary folder takes files and has space. Raises: HostError."""
    with temporary_folder() as folder:
        free = shutil.disk_usage(folder).free
    text = f"{free / 1e9:.1f} GB free at {folder.parent}"
    if free >= _MIN_TEMPORARY_BYTES:
        yield passed("temporary folder", text)
    else:
        yield warned("temporary folder", text, "free space, or set TMPDIR")


def check_ports(ports: Sequence[int]) -> Iterator[Finding]:
    """Check that nothing uses the ports."""
    for port in ports:
        try:
            check_port("--ports", port)
        except ConfigError as error:
            yield from_error("port", error)
        else:
            yield passed("port", f"{port} is free")


def check_model(setup: Setup, *, has_digest: bool = False) -> Iterator[Finding]:
    """Check that the model is supported and complete, or on the Hub. has_digest: read a local model wholly."""
    training_args = load_training_args(setup.args.training_args)
    template_for(training_args.model_id)
    if setup.args.executor != "local":
        return  # its machines have the model
    folder = setup.model_path
    if folder is not None:
        if (problem := find_problem(folder)) is not None:
            error = ConfigError(f"--model_path {setup.args.model_path}: {problem}")
            yield from_error("model", error, "complete the folder, or leave --model_path out to download the model")
        else:
            digest = f", digest {digest_folder(folder)[:12]}" if has_digest else ""
            yield passed("model", f"{training_args.model_id} in {folder} is complete{digest}")
        return
    if not training_args.is_pinned:
        return  # the settings' fault
    name = f"{training_args.model_id} at {training_args.revision}"
    cached = find_model(training_args.model_id, training_args.revision, setup.cache_dir)
    if cached is not None and (problem := find_problem(cached)) is None:
        yield passed("model", f"{name} is downloaded and complete")
        return
    try:
        check_model_listed(training_args.model_id, training_args.revision, read_token())
    except RemoteError as error:
        yield warned(
            "model", f"{name} could not be looked up: {error}", "check the network; it is downloaded at the start"
        )
    else:
        yield passed("model", f"{name} is on the Hub and is downloaded at the start")


def check_device(setup: Setup, *, is_default_checked: bool = True) -> Iterator[Finding]:
    """Check that torch's build and the driver offer the devices of --device, by default a GPU."""
    if setup.args.executor != "local":
        return  # its machines have the GPUs
    build = devices.find_build()
    if build is None:
        yield from_error("device", HostError("torch is not installed"), "bash scripts/setup.sh")
        return
    indexes = [devices.parse_device(name) for name in setup.devices]
    if setup.devices and not [index for index in indexes if index is not None]:
        yield passed("device", f"--device cpu, torch {build.version}")
        return
    if not setup.devices and not is_default_checked:
        return
    count, reason = devices.count_gpus(build)
    described = devices.describe_gpus(build, count, reason)
    wanted = [name for name, index in zip(setup.devices, indexes, strict=True) if index is not None and index >= count]
    if wanted:
        yield from_error("device", ConfigError(f"--device {','.join(wanted)}: {described}"), _GPU)
    elif count:
        yield passed("device", f"torch {build.version}, {described}")
    else:
        text = f"{described}; evaluations run on the CPU and take hours each with the subnet's own model"
        yield warned("device", text, _GPU)
