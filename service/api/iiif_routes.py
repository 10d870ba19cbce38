"""`/iiif`: stored streams by the IIIF Image API 3.0 at compliance level 2, for viewers that pan.

The paths are read in images/iiif.py. Pictures are cached, and their work is admitted, as those of
`/objects` are.
"""

from __future__ import annotations

import hashlib
import json
import re
import time
from typing import Annotated, Final

from fastapi import APIRouter, Depends, Path, Request, Response
from fastapi.responses import RedirectResponse

from service.api import headers, openapi
from service.api.file_work import DecompressFile, Rendition
from service.api.headers import header_values
from service.api.image_routes import decode
from service.api.object_routes import (
    IMMUTABLE,
    SMALL_QUALITY,
    picture_response,
    read_stream,
    request_tag,
    stored_size,
    translate_damage,
)
from service.api.service import Service, ServiceArg, refuse_query
from service.errors import BadImagePath, NoSuchObject, NotAcceptable
from service.http.negotiate import Form, weight_of
from service.http.responses import not_modified_response
from service.images.iiif import FORMATS, PROFILE, ImagePath, SizeLimits, describe_image
from service.images.write import LONGEST_SIDE

DAY: Final = "public, max-age=86400"
"""Caching of the image information document, which a newer server may change."""

PROFILE_LINK: Final = f'<{PROFILE}>;rel="profile"'


def _stored_name(
    sha256: Annotated[
        str, Path(description="SHA-256 of the stream in lower-case hex.", examples=["e3b0c442" * 8])
    ],
) -> str:
    """The name of a stored stream. Raises NoSuchObject for a name that no stream can have."""
    if not re.fullmatch("[0-9a-f]{64}", sha256):
        raise NoSuchObject(f"{sha256[:80]!r} is not a SHA-256 of 64 lower-case hex digits")
    return sha256


def _image_path(
    region: Annotated[
        str,
        Path(
            description="`full`, `square`, `x,y,w,h` in pixels or `pct:x,y,w,h`; it is cut at the "
            "picture's edges.",
            examples=["0,0,1024,1024"],
        ),
    ],
    size: Annotated[
        str,
        Path(
            description="`max`, `w,`, `,h`, `w,h`, `!w,h` or `pct:n`; the forms with `^` are taken "
            "where they do not enlarge.",
            examples=["512,"],
        ),
    ],
    rotation: Annotated[
        str,
        Path(
            description="Clockwise, a multiple of 90; after `!` the picture is mirrored first.",
            examples=["0"],
        ),
    ],
    quality: Annotated[
        str, Path(description="`default`, `color`, `gray` or `bitonal`.", examples=["default"])
    ],
    format: Annotated[str, Path(description="`jpg`, `png`, `webp` or `avif`.", examples=["jpg"])],
) -> ImagePath:
    """The path of a picture. Raises BadImagePath."""
    return ImagePath(region, size, rotation, quality, format)


StoredName = Annotated[str, Depends(_stored_name)]

router = APIRouter(prefix="/iiif", tags=["objects"], dependencies=[Depends(refuse_query)])


@router.get(
    "/{sha256}", status_code=303, response_class=RedirectResponse, responses=openapi.IIIF_BASE
)
async def redirect_to_information(service: ServiceArg, sha256: StoredName) -> Response:
    """The image information document is at `info.json` below this address."""
    return RedirectResponse(f"{service.settings.root_path}/iiif/{sha256}/info.json", 303)


@router.get("/{sha256}/info.json", response_class=Response, responses=openapi.IIIF_INFORMATION)
async def get_information(request: Request, service: ServiceArg, sha256: StoredName) -> Response:
    """The size of a picture, and the sizes and tiles that a viewer should request."""
    size = await stored_size(service, sha256)
    stream = await read_stream(request, service, sha256, size)
    with translate_damage(sha256):
        shape = service.codec.preview_stream(stream).shape
    url = f"{request.url.scheme}://{request.url.netloc}{service.settings.root_path}/iiif/{sha256}"
    document = describe_image(
        url, shape.width, shape.height, _limits(service), has_alpha=shape.has_alpha
    )
    body = json.dumps(document, indent=1).encode()
    media_type = _media_type(",".join(request.headers.getlist("accept")))
    values = header_values(
        {headers.CACHE_CONTROL: DAY, headers.VARY: "Accept", headers.LINK: PROFILE_LINK}
    )
    tag = hashlib.sha256(body + media_type.encode()).hexdigest()[:32]
    if (known := not_modified_response(request, tag, values)) is not None:
        return known
    return Response(body, 200, values | header_values({headers.ETAG: f'"{tag}"'}), media_type)


@router.get(
    "/{sha256}/{region}/{size}/{rotation}/{quality}.{format}",
    response_class=Response,
    responses=openapi.IIIF_IMAGE,
)
async def get_image(
    request: Request,
    service: ServiceArg,
    sha256: StoredName,
    path: Annotated[ImagePath, Depends(_image_path)],
) -> Response:
    """Decode a part of a stored stream at a size, turned and in colour or grey."""
    tag = request_tag(sha256, path)
    caching = header_values({headers.CACHE_CONTROL: IMMUTABLE})
    started_s = time.perf_counter()
    size = await stored_size(service, sha256)
    if (known := not_modified_response(request, tag, caching)) is not None:
        return known
    stream = await read_stream(request, service, sha256, size)
    fetch_s = time.perf_counter() - started_s
    with translate_damage(sha256):
        shape = service.codec.preview_stream(stream).shape
        picture = shape.width, shape.height, _limits(service)
        canonical = f"{service.settings.root_path}/iiif/{sha256}/{path.canonical(*picture)}"
        format = FORMATS[path.format]
        forms = (Form(format, SMALL_QUALITY.get(format)),)
        rendition = Rendition(forms, path.view(*picture), path.effects)
        work = DecompressFile(service.codec, stream, rendition, service.write_limits)
        try:
            done = await decode(request, service, work)
        except NotAcceptable as error:  # no Accept header was asked
            raise BadImagePath(str(error)) from error
    links = header_values({headers.LINK: f'<{canonical}>;rel="canonical", {PROFILE_LINK}'})
    return await picture_response(request, done, tag, caching | links, fetch_s)


def _limits(service: Service) -> SizeLimits:
    """What can be written as JPEG and as PNG, the formats that every viewer may expect."""
    area = min(service.write_limits.largest_area(name) for name in ("jpeg", "png"))
    return SizeLimits(LONGEST_SIDE["jpeg"], area)


def _media_type(accept: str) -> str:
    """The media type of the image information document; plain JSON only if it weighs more."""
    plain, linked = openapi.JSON_TYPE, openapi.LINKED_JSON_TYPE
    is_plain = weight_of(accept, plain) > weight_of(accept, linked.partition(";")[0])
    return plain if is_plain else linked
