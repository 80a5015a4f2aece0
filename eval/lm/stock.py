"""lm-eval's classes as they are used here, with the types that lm-eval does not give.

Its registry decorator turns `HFLM` into something without attributes for a type checker, and `Instance.args` into a
tuple without elements. At run time these names are lm-eval's own classes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable
    from dataclasses import dataclass, field

    import torch

    @dataclass
    class Instance:
        """One request: what is asked, of which document (`doc_id`) of which task."""

        request_type: str
        doc: Any
        arguments: tuple[Any, ...]
        idx: int
        metadata: tuple[str | None, int | None, int | None] = (None, None, None)
        resps: list[Any] = field(default_factory=list)
        filtered_resps: dict[str, Any] = field(default_factory=dict)
        task_name: str = ""
        doc_id: int = -1
        repeats: int | None = None

        @property
        def args(self) -> tuple[Any, ...]: ...

    class HFLM:
        """A transformers model under lm-eval."""

        model: Any
        tokenizer: Any
        device: torch.device
        batch_size: int
        batch_size_per_gpu: int
        max_length: int
        rank: int
        world_size: int
        prefix_token_id: int | None
        think_end_token: str | int | None
        _model: Any
        _device: torch.device
        _max_length: int | None
        _rank: int
        _world_size: int
        accelerator: Any  # only where accelerate launched the process

        def __init__(self, pretrained: Any, **options: Any) -> None: ...
        def tok_encode(self, string: str, add_special_tokens: bool | None = None, **options: Any) -> list[int]: ...
        def _encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]: ...
        def _get_backend(self, config: Any, backend: str, trust_remote_code: bool | None) -> None: ...
        def _create_model(self, *arguments: Any, **options: Any) -> None: ...
        def get_model_info(self) -> dict[str, Any]: ...

    class Task:
        """A data set with its prompts and metrics."""

        OUTPUT_TYPE: str
        instances: list[Instance]

        def __init__(self, config: dict[str, Any]) -> None: ...
        def get_config(self, key: str) -> Any: ...
        def set_config(self, key: str, value: Any) -> None: ...
        def set_fewshot_seed(self, seed: int) -> None: ...
        def build_all_requests(self, **options: Any) -> None: ...
        def doc_to_target(self, doc: Any) -> Any: ...
        def process_results(self, doc: Any, results: list[Any]) -> dict[str, float]: ...
        def apply_filters(self) -> Any: ...
        def aggregation(self) -> dict[str, Callable[[list[Any]], float]]: ...
        def higher_is_better(self) -> dict[str, bool]: ...

else:
    from lm_eval.api.instance import Instance
    from lm_eval.api.task import Task
    from lm_eval.models.huggingface import HFLM

__all__ = ["HFLM", "Instance", "Task"]
