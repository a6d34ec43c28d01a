"""Where ds-serve looks which flags there are."""


class FrontendArgs:
    enable_server_load_tracking: bool = False
