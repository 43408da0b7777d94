"""An endpoint as a recipe uses it: its address, the recipe's key that names it, and the key of its service."""

from __future__ import annotations

import os
from importlib.util import find_spec
from typing import TYPE_CHECKING, NamedTuple

from trainer.errors import RunError
from trainer.recipe import Endpoint

if TYPE_CHECKING:
    import openai

OPENAI_HOST = "api.openai.com"
# Variables of services with a name of their own; their keys are sent to no other host.
KEYS_OF_HOSTS = {
    OPENAI_HOST: "OPENAI_API_KEY",
    "api.cohere.com": "COHERE_API_KEY",
    "api.cohere.ai": "COHERE_API_KEY",
    "api.jina.ai": "JINA_API_KEY",
    "api.voyageai.com": "VOYAGE_API_KEY",
}
KEYS_OF_SECTIONS = {
    "generate": "GENERATE_API_KEY",
    "mine": "TEACHER_API_KEY",
    "distil": "TEACHER_API_KEY",
    "evaluate": "JUDGE_API_KEY",
}
NO_KEY = "none"  # local servers need no key, but the client demands one
TIMEOUT = 180.0  # seconds for one answer


class Service(NamedTuple):
    """An endpoint, and the recipe's key that names it, e.g. mine.teacher."""

    endpoint: Endpoint
    key: str

    @property
    def variable(self) -> str:
        """The environment variable of the service's key; the key of a known host is never sent to another one."""
        return KEYS_OF_HOSTS.get(self.endpoint.host) or KEYS_OF_SECTIONS[self.key.partition(".")[0]]

    @property
    def secret(self) -> str:
        """The key of the service, empty without one."""
        return os.environ.get(self.variable, "").strip()

    @property
    def name(self) -> str:
        """The model and its address, for messages."""
        model, url, _ = self.endpoint
        return f"{model} at {url}" if model else url

    def hide(self, text: str) -> str:
        """Return a text without the key, which a server may repeat."""
        return text.replace(self.secret, "***") if self.secret else text

    def connect(self) -> openai.OpenAI:
        """Return a client that sends each request once; raise RunError if the endpoint cannot be used."""
        if problem := service_problem(self):
            raise RunError(problem)
        import openai

        # The library would send OpenAI's names of organization and project, from the environment, to every server.
        own = None if self.endpoint.host == OPENAI_HOST else ""
        return openai.OpenAI(
            api_key=self.secret or NO_KEY,
            base_url=self.endpoint.url,
            organization=own,
            project=own,
            timeout=TIMEOUT,
            max_retries=0,
        )


def service_problem(service: Service) -> str:
    """Return the reason, known before the first request, why an endpoint cannot be used; empty if there is none."""
    secret, variable, host = service.secret, service.variable, service.endpoint.host
    if find_spec("openai") is None:
        return f"{service.key}: an endpoint needs a package: pip install 'domain-reranker[generate]'"
    if not secret and host in KEYS_OF_HOSTS:
        return f"{service.key}: {host} needs a key; set the environment variable {variable}"
    if not secret.isascii() or not secret.isprintable() or " " in secret:
        return f"{variable}: is not a key, which is ASCII without spaces; set it again"
    return ""
