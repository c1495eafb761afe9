"""Defaults and limits of the client, each with its unit and reason."""

EMBEDDING_SIZE = 1024  # of both towers: UNICL_MODEL, DIM_PROJECTION in the checkpoint's config.yaml

# A call with many inputs becomes several requests. Their sizes and number are small enough for a CPU to answer within
# the time limit (one full-size image takes two cores 5 s in fp32, perf/results), and 4 x 4 images or 4 x 16 texts fill
# the largest batch that the server's dynamic batching makes of them, 16 and 64.
IMAGES_PER_REQUEST = 4
TEXTS_PER_REQUEST = 16
DEFAULT_CONCURRENCY = 4  # requests in flight of one client
# Of images in one request: 60 MiB as base64. Tritons with an --http-max-input-size take 64 MiB by default, the scoring
# endpoint 64 MB.
MAX_REQUEST_BYTES = 45 * 2**20
MAX_BODY_BYTES = 60 * 2**20  # of a request that is posted as it was given; as many as those images in base64
MIN_SHARED_MEMORY_BYTES = 2**20  # of an input; smaller ones travel as fast in the request, perf/NOTES.md
STANDARD_IMAGE_SIZE_PX = 512  # side of the square that the server makes of an image before anything else, as Azure does
MAX_IMAGE_SIZE_PX = 2048  # image_standardization_image_size; the server takes its limit from here
MAX_JPEG_QUALITY = 100  # image_standardization_jpeg_compression_ratio; the server takes its limit from here

# Of one request with its retries; 16 full-size images in flight take two CPU cores nearly as long.
DEFAULT_TIMEOUT_S = 120.0

# Of one report with its retries, or of one stream to its end: a CPU takes minutes for the prompt of three images and a
# few hundred tokens after it. A healthy server ends a request after as long (time_limit_s of cxrreportgen_stream).
DEFAULT_REPORT_TIMEOUT_S = 600.0

DEFAULT_RETRIES = 4  # after the first attempt
FIRST_DELAY_S = 0.5  # before the first retry; doubles with each
MAX_DELAY_S = 8.0
MAX_RETRY_AFTER_S = 60.0  # longest wait that a server may ask for before a retry
JITTER = 0.5  # a delay is shortened by up to this part, so that clients refused together do not return together

REPORT_IMAGE_SIZE_PX = 518  # side of the square that CXRReportGen sees; crop_size in MAIRA-2's preprocessor_config.json

DEFAULT_URL = "grpc://localhost:8001"  # Triton's own default port; of the command line
DEFAULT_PORTS = {"grpc": 8001, "grpcs": 8001, "http": 8000, "https": 443}  # Triton's, but a proxy's for https

PNG_COMPRESS_LEVEL = 1  # 0 to 9; for radiographs a higher level takes longer than the bytes it saves on a local network
PERCENTILES = (1.0, 99.0)  # black and white of a DICOM file without a window, as in Microsoft's healthcareai toolkit

# Of an archive
DEFAULT_ARCHIVE_TIMEOUT_S = 300.0  # one request with its retries; a multi-frame object of 1 GiB at 50 Mbit/s takes 170
ARCHIVE_SILENCE_S = 60.0  # without a byte, after which a request is made again
ARCHIVE_PAGE = 100  # results of a search in one answer
MAX_OBJECT_BYTES = 2**30  # of one answer, which is held in memory several times; and of what a DICOM file inflates to
MAX_FRAME_PX = 178_956_970  # rows x columns of a DICOM frame, where Pillow's own bound for other files is
