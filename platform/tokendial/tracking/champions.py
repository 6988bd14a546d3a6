"""Which registered models have a champion: what `tokendial serve` means where no model is named."""

from tokendial.failures import WorkFailed
from tokendial.tracking.registry import CHAMPION
from tokendial.tracking.server import AWAY, connect, probe, reason
from tokendial.tracking.uri import redact


def champions(uri: str) -> list[str]:
    """Names of the models with a champion; WorkFailed where the registry does not answer."""
    try:
        probe(uri)
        return [model.name for model in connect(uri).search_registered_models() if CHAMPION in model.aliases]
    except AWAY as error:
        raise WorkFailed(f"model registry {redact(uri)} is not usable ({reason(error, uri)})") from error
