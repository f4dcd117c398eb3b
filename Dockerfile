# The project in a container: on the CPU, or on NVIDIA GPUs with --build-arg TORCH=cu126.
#
#   docker build -t zeroshot-d2 .
#   docker run --rm -p 127.0.0.1:7860:7860 -v zeroshot-d2:/work zeroshot-d2       the web page
#   docker run --rm -v zeroshot-d2:/work zeroshot-d2 zeroshot-d2 --help           every other command
#
# docs/web.md and docs/getting_started.md have more.
ARG PYTHON=3.11
FROM python:${PYTHON}-slim-bookworm

# "cpu", or a CUDA version as PyTorch's index of wheels has it: cu126, cu128, ... Its wheels bring CUDA's libraries; the host
# needs NVIDIA's driver and container toolkit, and `docker run --gpus all`.
ARG TORCH=cpu

ENV PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_ROOT_USER_ACTION=ignore \
    PYTHONUNBUFFERED=1

WORKDIR /opt/zeroshot-d2
COPY constraints.txt ./
COPY scripts/install_detectron2.py scripts/
# A wheel of PyTorch's own index is of the same version with +cpu or +cu126 behind it, which pip takes for the newer one.
RUN pip install -c constraints.txt --extra-index-url https://download.pytorch.org/whl/${TORCH} torch torchvision \
    && python scripts/install_detectron2.py -c constraints.txt

COPY setup.py pyproject.toml README.md LICENSE ./
COPY zeroshot_d2 zeroshot_d2
COPY alignzeg_d2 alignzeg_d2
COPY epsilon_d2 epsilon_d2
COPY baselines_d2 baselines_d2
COPY configs configs
RUN pip install -c constraints.txt ".[opencv,data,demo,web,export]"
COPY space space

# What is trained, downloaded and cached lies in one folder, which a volume keeps.
RUN useradd --uid 1000 --create-home user && install -d -o user -g user /work
USER user
ENV DETECTRON2_DATASETS=/work/datasets \
    ZEROSHOT_D2_CACHE=/work/cache \
    HF_HOME=/work/huggingface
WORKDIR /work
VOLUME /work
EXPOSE 7860
CMD ["python", "/opt/zeroshot-d2/space/app.py"]
