# The program `medsam2`, for a worker on another computer (Resources/docs/remote.md) and for the command line:
#
#     docker build -t medsam2 .
#     docker run -i --rm --gpus all medsam2 medsam2 worker
#     docker run --rm --user "$(id -u)" -v "$PWD":/data medsam2 \
#         medsam2 segment scan.nrrd --box 20,30,60,80@12 --out liver.seg.nrrd
#
# PyTorch's build for CUDA brings its libraries along: the host needs the driver and NVIDIA's container toolkit only.
FROM python:3.12-slim

RUN pip install --no-cache-dir torch==2.13.0 "setuptools>=77,<82" wheel

# What changes seldom comes first, so that a new version of the program does not download PyTorch again.
COPY requirements/sam2.txt /requirements/sam2.txt
RUN SAM2_BUILD_CUDA=0 pip install --no-cache-dir --no-build-isolation --no-deps --require-hashes -r /requirements/sam2.txt

COPY pyproject.toml LICENSE /source/
COPY Resources/docs/python.md /source/Resources/docs/
COPY MedSAM2Segment/medsam2_core /source/MedSAM2Segment/medsam2_core
RUN pip install --no-cache-dir /source && rm -rf /source

# Results in a mounted folder belong to the user given with --user; downloaded models stay with -v models:/models.
ENV MEDSAM2_MODELS=/models XDG_CACHE_HOME=/models/cache
RUN useradd --create-home medsam2 && mkdir --mode 1777 /models
USER medsam2
WORKDIR /data
CMD ["medsam2", "--help"]
