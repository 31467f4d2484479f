"""The log of past requests."""

from chatloom.feedback.database import now
from chatloom.feedback.records import PastRequest
from chatloom.feedback.store import Store


def test_requests_are_listed_filtered_and_forgotten(store: Store) -> None:
    old = PastRequest(id="1", created=1.0, path="/v1/models", status=200)
    time = now()
    first = PastRequest(
        id="2",
        created=time,
        path="/v1/completions",
        status=200,
        model="tiny",
        caller="a key",
        num_tokens=5,
        stream=True,
    )
    second = PastRequest(
        id="3", created=time + 1, path="/v1/chat/completions", status=429, error="rate_limit_exceeded", seconds=0.5
    )
    store.log_requests([first, second])
    store.log_requests([old])
    store.log_requests([])
    assert store.requests() == [second, first, old]
    assert store.requests(limit=1, offset=1) == [first]
    assert store.requests(failed=True) == [second]
    assert store.requests(model="tiny") == store.requests(caller="a key") == [first]
    assert store.requests(since=second.created) == [second]
    assert store.forget_requests(older_than_seconds=3600) == 1
    assert store.requests() == [second, first]
