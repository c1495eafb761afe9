"""What Triton 2.51's Python backend, and our models with its words, say where /dev/shm is full."""

GROW = (
    "Failed to increase the shared memory pool size for key 'medimage-triton-u9lwzs1_f33293cf' to 1048576 bytes. "
    "If you are running Triton inside docker, use '--shm-size' flag to control the shared memory region size. "
    "Error: No space left on device"
)
MESSAGES = [
    GROW,
    f"Failed to process the request(s) for model 'image_preprocessing_0_0', message: {GROW}",  # of a stub
    f"internal error: {GROW}",  # on the way between two of our models
    f"internal error: cxr_image_preprocessing: {GROW}",
    "Failed to create new mapped region for the grown shared memory region 'k'. Cannot allocate memory",
    "Unable to initialize shared memory key 'k' to requested size (1048576 bytes). Error: No space left on device",
]
