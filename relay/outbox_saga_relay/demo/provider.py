"""The payment and mail company: a process of its own, reached by HTTP, with a ledger of its own.

    POST /charges   {"order", "customer", "amount_cents"}    201, or 402: declined
    POST /refunds   {"charge"}                               201, or 422
    POST /mails     {"kind", "to", "about"}                  201, or 422: nobody there
    GET  /ledger                                             everything it did

Every POST carries an `Idempotency-Key`: it acts once per key, repeats its answer to the same
request, and says 409 to another one. Under a seed it declines some requests for good, and loses
some on the way: before acting (`lose_request`), after acting (`lose_reply`), or answers later
than its callers wait (`answer_late`).
"""

from __future__ import annotations

import argparse
import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from outbox_saga_relay.demo.faults import Faults
from outbox_saga_relay.demo.ledger import Answer, Ledger
from outbox_saga_relay.demo.pace import LATE_BY

MAX_REQUEST = 64 * 1024


class Provider(ThreadingHTTPServer):
    """Listens on a loopback port.

    Args:
        port: 0 for any free one.
        ledger: Its books.
        faults: What goes wrong.
        late_by: Seconds that a late answer is late.
    """

    daemon_threads = True
    request_queue_size = 128

    def __init__(
        self, port: int, ledger: Ledger, faults: Faults, *, late_by: float = LATE_BY
    ) -> None:
        super().__init__(("127.0.0.1", port), _Request)
        self.ledger = ledger
        self.faults = faults
        self.late_by = late_by
        self.closing = threading.Event()

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.server_address[1]}"

    def answer(self, path: str, key: str, request: dict[str, Any]) -> Answer:
        """What it says, acting if it has not acted under this key before."""
        try:
            what, act = self._acts(path, key, request)
        except (KeyError, TypeError, ValueError) as error:
            return Answer(400, {"error": f"not a request for {path}: {error!r}"})
        if self.faults.declines(what, key):
            refusal = (402, "card declined") if path == "/charges" else (422, "nobody there")
            answer = Answer(refusal[0], {"error": refusal[1]})
            return self.ledger.once(key, path, request, lambda: answer)
        return self.ledger.once(key, path, request, act)

    def _acts(
        self, path: str, key: str, request: dict[str, Any]
    ) -> tuple[str, Callable[[], Answer]]:
        match path:
            case "/charges":
                order, customer = int(request["order"]), str(request["customer"])
                amount = int(request["amount_cents"])
                if amount < 0:
                    raise ValueError(f"amount_cents is {amount}")
                return "charge", lambda: self.ledger.charge(key, order, customer, amount)
            case "/refunds":
                charge = str(request["charge"])
                return "refund", lambda: self.ledger.refund(key, charge)
            case _:
                kind, to, about = (str(request[name]) for name in ("kind", "to", "about"))
                return kind, lambda: self.ledger.mail(key, kind, to, about)


class _Request(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # an answer is two small writes: do not wait between them

    @property
    def provider(self) -> Provider:
        """Whose request it is."""
        assert isinstance(self.server, Provider)
        return self.server

    def do_GET(self) -> None:
        if self.path == "/ledger":
            self._say(Answer(200, self.provider.ledger.everything()))
        else:
            self._say(Answer(404, {"error": "GET /ledger is all there is to read"}))

    def do_POST(self) -> None:
        read = self._read()
        if isinstance(read, Answer):
            self._say(read)
            return
        key, request = read
        arrival = self.provider.ledger.arrived(key)
        disturbance = self.provider.faults.disturbance(key, arrival)
        if disturbance == "lose_request":
            self.close_connection = True
            return
        answer = self.provider.answer(self.path, key, request)
        if disturbance == "lose_reply":
            self.close_connection = True
            return
        if disturbance == "answer_late":
            self.provider.closing.wait(self.provider.late_by)
        self._say(answer)

    def _read(self) -> tuple[str, dict[str, Any]] | Answer:
        """Key and body of the request, or what is wrong with it."""
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal() or int(length) > MAX_REQUEST:
            self.close_connection = True  # where the next request begins is not known
            return Answer(411, {"error": f"send a Content-Length of at most {MAX_REQUEST}"})
        body = self.rfile.read(int(length))
        if self.path not in ("/charges", "/refunds", "/mails"):
            return Answer(404, {"error": "POST /charges, /refunds or /mails"})
        key = self.headers.get("Idempotency-Key", "")
        if not key:
            return Answer(400, {"error": "send an Idempotency-Key"})
        try:
            request = json.loads(body)
        except ValueError:
            return Answer(400, {"error": "the body is not JSON"})
        if not isinstance(request, dict):
            return Answer(400, {"error": "the body is not a JSON object"})
        return key, request

    def _say(self, answer: Answer) -> None:
        body = json.dumps(answer.body).encode()
        try:
            self.send_response(answer.status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True  # the caller did not wait, or was killed

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the inherited name
        """Say nothing: the ledger tells what was done."""


def main() -> None:
    """Serve until killed; the first line on standard output is the URL."""
    parser = argparse.ArgumentParser(prog="python -m outbox_saga_relay.demo.provider")
    parser.add_argument("--ledger", type=Path, required=True, help="the file of its books")
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one")
    parser.add_argument("--faults", type=int, default=None, metavar="SEED")
    chosen = parser.parse_args()
    provider = Provider(chosen.port, Ledger(chosen.ledger), Faults(chosen.faults))
    print(provider.url, flush=True)  # noqa: T201 - whoever started it waits for this line
    provider.serve_forever()


if __name__ == "__main__":
    main()
