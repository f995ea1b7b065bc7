# An image that trains: torch with CUDA, Detectron2, corrdet with its kernels.
#
#   docker build -t corrdet .
#   docker run --gpus all --shm-size 8g -v /data:/data corrdet corrdet-train --config-file ...
#
# Not tried: the machine that this was written on has no Docker. Its commands are those of README's
# "Install", which are.
FROM nvidia/cuda:13.0.0-devel-ubuntu24.04
RUN apt-get update \
    && apt-get install -y --no-install-recommends g++ git python3-dev python3-venv \
    && rm -rf /var/lib/apt/lists/*
RUN python3 -m venv /opt/corrdet
ENV PATH=/opt/corrdet/bin:$PATH
RUN pip install --no-cache-dir torch==2.11.0 torchvision==0.26.0 'setuptools>=77' wheel ninja
COPY . /opt/corrdet/source
WORKDIR /opt/corrdet/source
# No GPU is visible while an image is built: kernels for these, and what drivers translate.
ENV TORCH_CUDA_ARCH_LIST="8.0;9.0+PTX"
RUN python tools/install_detectron2.py \
    && pip install --no-cache-dir --no-build-isolation '.[detectron2]'
WORKDIR /work
