"""The softmax family, its derivatives and fused cross-entropy losses on NumPy arrays."""

from . import _derivatives, _divergences, _forward, _linear, _losses, _second_order
from . import special as special
from ._backends import BackendUnavailableError, available_backends, use_backend
from ._config import show_config
from ._derivatives import *  # noqa: F403
from ._divergences import *  # noqa: F403
from ._forward import *  # noqa: F403
from ._linear import *  # noqa: F403
from ._losses import *  # noqa: F403
from ._second_order import *  # noqa: F403
from ._threads import get_num_threads, num_threads, set_num_threads
from ._version import __version__

__all__ = [
    "BackendUnavailableError",
    "__version__",
    "available_backends",
    "get_num_threads",
    "num_threads",
    "set_num_threads",
    "show_config",
    "use_backend",
]
# A public function enters the package's surface in its own module's __all__, and only there.
for _module in (_derivatives, _divergences, _forward, _linear, _losses, _second_order):
    __all__ += _module.__all__
__all__.sort()
