"""Prompts of a chat or completion request as the engine gets them, without generating."""

from typing import Any

from vllm.entrypoints.serve.engine.protocol import ErrorResponse

from heed_server.api.requests import HeedChatRequest, HeedCompletionRequest


async def rendered_prompts(
    state: Any, request: HeedChatRequest | HeedCompletionRequest
) -> list[Any] | ErrorResponse:
    """vLLM's engine inputs, or its refusal.

    state: of the application, with vLLM's handlers.
    """
    if isinstance(request, HeedChatRequest):
        rendered = await state.openai_serving_chat.render_chat_request(request)
        if isinstance(rendered, ErrorResponse):
            return rendered
        return list(rendered[1])
    rendered = await state.openai_serving_completion.render_completion_request(request)
    return rendered if isinstance(rendered, ErrorResponse) else list(rendered)
