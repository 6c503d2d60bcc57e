import httpx
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route

client = httpx.AsyncClient()


async def front(request):
    answer = await client.get("http://hello/")
    return PlainTextResponse(f"front: {answer.text}", answer.status_code)


app = Starlette(routes=[Route("/", front)])
