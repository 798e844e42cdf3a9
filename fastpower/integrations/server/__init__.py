"""An OpenAI-compatible server: every client of that interface can sample from p^alpha (extra ``serve``)."""
