"""Processes that preprocess images, one for each function, for as long as a `with` block lasts."""

from contextlib import ExitStack

from medimage_server.image_process import ImageProcess


class Children:
    def __init__(self):
        self._stack, self._processes = ExitStack(), {}

    def run(self, one_image):
        """ImageProcess.run of the process that has this function."""
        if one_image not in self._processes:
            process = ImageProcess(one_image, one_image.shape)
            self._processes[one_image] = self._stack.enter_context(process)
        return self._processes[one_image].run

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self._stack.close()
