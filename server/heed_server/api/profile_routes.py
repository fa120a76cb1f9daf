"""Routes that tell of profiles: their list, and the model names that stand for them."""

from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse
from vllm.entrypoints.serve.engine.protocol import ModelCard, ModelPermission

from heed_server.api.model_names import SEPARATOR, served_names
from heed_server.api.routes import door_of
from heed_server.engine.versions import installed_vllm
from heed_server.profiles.identity import Serving
from heed_server.profiles.profile import Profile
from heed_server.version import __version__

router = APIRouter()


@router.get("/v1/models")
async def list_models(raw_request: Request) -> JSONResponse:
    """vLLM's models, and one more for each profile that can be asked for by name alone."""
    serving = raw_request.app.state.openai_serving_models
    listed = await serving.show_available_models()
    base = listed.data[0]
    listed.data += [
        ModelCard(
            id=name,
            created=base.created,
            owned_by="heed",
            root=base.root,
            parent=base.id,
            max_model_len=base.max_model_len,
            permission=[ModelPermission()],
        )
        for name in served_names(base.id, door_of(raw_request).profiles.loaded)
    ]
    return JSONResponse(listed.model_dump())


@router.get("/v1/intervention-profiles")
async def list_profiles(raw_request: Request) -> JSONResponse:
    """The profiles that requests can ask for, those that are refused, and the model being served."""
    store = door_of(raw_request).profiles
    loaded = store.loaded
    models = raw_request.app.state.openai_serving_models
    base = models.model_name()
    dtype = str(models.model_config.dtype).removeprefix("torch.")
    serving = Serving(heed=__version__, vllm=installed_vllm(), dtype=dtype)
    return JSONResponse(
        {
            "object": "list",
            "model": None if store.served is None else store.served.model_dump(mode="json"),
            "serving": serving.model_dump(mode="json"),
            "data": [
                _entry(profile, f"{base}{SEPARATOR}{name}" if name in loaded.complete else None)
                for name, profile in loaded.profiles.items()
            ],
            "refused": [
                {"name": name, "reason": reason} for name, reason in loaded.refused.items()
            ],
        }
    )


def _entry(profile: Profile, model_name: str | None) -> dict[str, Any]:
    return {"object": "intervention_profile", "model_name": model_name} | profile.model_dump(
        mode="json"
    )
