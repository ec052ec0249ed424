"""web: reads as HTTP answers, with everything that browsers and HTTP caches need to know of them."""

from cacheworkers.web.http import REFUSED, Answer, HttpPolicy, answer, refusal

__all__ = ["REFUSED", "Answer", "HttpPolicy", "answer", "refusal"]
