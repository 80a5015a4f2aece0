"""What a request's tokens are: lm-eval's, without the special ones that do not belong there, and all of them.

Tokens are remembered across arms, which all ask the same requests.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import Any

from sa_eval.lm import special_tokens
from sa_eval.lm.stock import HFLM, Instance

Pair = tuple[Sequence[int], Sequence[int]]  # tokens of a context, and of the continuation that is scored


class RequestError(ValueError):
    """A document cannot be asked as it is; asking something else would be another task."""


class TruncationError(RequestError):
    """A document does not fit the model; scoring the rest of it would be another task."""


class ExactTokens(HFLM):
    """HFLM whose requests have tokens without anything before, between or after them that was not asked."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._tokens: dict[Any, Any] = {}
        self._end = special_tokens.around(self.tokenizer)[1]

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **options: Any) -> list[int]:
        """As lm-eval, but without the special tokens that some tokenizers put after every text."""
        if add_special_tokens is None and self.prefix_token_id is None:
            add_special_tokens = True  # lm-eval would look for the text of a begin-of-text token, which there is not
        ids = super().tok_encode(string, add_special_tokens, **options)
        if self._end and ids != self.tokenizer.encode(string, add_special_tokens=False):
            return ids[: -len(self._end)]
        return ids

    def encoded_pair(self, request: Instance) -> tuple[array, array]:
        """Token ids of context and continuation, split as lm-eval splits them.

        Spaces at the end of the context belong to the continuation, so a context of spaces is an empty one, which is
        the token that begins a text. A continuation without text has no tokens.
        """
        if request.args not in self._tokens:
            context, continuation = request.args
            if continuation and context.rstrip():
                pair = self._encode_pair(context, continuation)
            else:
                text = context + continuation if continuation else ""
                pair = self._encoded_start(request, text)
            self._tokens[request.args] = (array("l", pair[0]), array("l", pair[1]))
        return self._tokens[request.args]

    def encoded_prompt(self, request: Instance) -> array:
        """Token ids of what is generated from; an empty prompt is the token that begins a text."""
        prompt = request.args[0]
        if prompt not in self._tokens:
            self._tokens[prompt] = array("l", self.tok_encode(prompt) or [self._first_token(request)])
        return self._tokens[prompt]

    def prompt_row(self, request: Instance) -> list[int]:
        """The tokens whose prefill this request causes."""
        if request.request_type == "generate_until":
            return list(self.encoded_prompt(request))
        if request.request_type == "loglikelihood":
            context, continuation = self.encoded_pair(request)
        else:
            context, continuation = self._encoded_start(request, request.args[0])
        return [*context, *continuation[:-1]]

    def _encoded_start(self, request: Instance, text: str) -> Pair:
        """A text from its beginning: the token that begins a text, which is not scored, and the text's own tokens."""
        first, ids = self._first_token(request), self.tok_encode(text, add_special_tokens=False)
        return [first], ids[1:] if ids[:1] == [first] else ids

    def _first_token(self, request: Instance) -> int:
        if self.prefix_token_id is None:
            raise RequestError(
                f"document {request.doc_id} of {request.task_name} begins with nothing, and the tokenizer has neither "
                "a begin-of-text nor an end-of-text token to begin with: set bos_token in tokenizer_config.json"
            )
        return self.prefix_token_id

    def _refuse_empty(self, request: Instance, what: str) -> None:
        raise RequestError(
            f"document {request.doc_id} of {request.task_name}: {what} has no tokens of its own, so there is nothing "
            "to score: mend the data or the task's template, or leave the document out"
        )

    def _refuse_truncation(self, request: Instance, tokens: int, what: str) -> None:
        limit = self._max_length
        if limit is not None and tokens > limit:
            raise TruncationError(
                f"document {request.doc_id} of {request.task_name}: {what} take {tokens} tokens, the model holds "
                f"{limit}; nothing is truncated here: use a shorter length or a model with more positions"
            )
