import asyncio

from heed_server.api.activity import Activity


async def returns(activity: Activity) -> bool:
    try:
        await asyncio.wait_for(activity.wait(), 0.01)
    except TimeoutError:
        return False
    return True


def test_an_idle_server_is_never_polled_and_a_busy_one_again_and_again() -> None:
    async def scenario() -> list[bool]:
        activity = Activity()
        seen = [await returns(activity)]
        activity.begin()
        seen += [await returns(activity), await returns(activity)]
        activity.end()
        return [*seen, await returns(activity), await returns(activity)]

    assert asyncio.run(scenario()) == [False, True, True, True, False]
