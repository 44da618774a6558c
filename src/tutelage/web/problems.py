"""Error messages for people, in the reader's language: an error's code -> a sentence.

Programs get the error's own message, which is English and more detailed. So do people, for a code that is not here.
"""

from collections.abc import Callable


def problems(_: Callable[[str], str]) -> dict[str, str]:
    """A sentence for every error code that can occur on a page. `_` translates."""
    return {
        "not_signed_in": _("Sign in first."),
        "csrf": _("The page is out of date. Reload it."),
        "cross_origin": _("This request comes from another site."),
        "insufficient_permissions": _("Your role does not allow this."),
        "link_used": _(
            "This link has already been used or has expired. Ask for a new one; the server also prints one at each "
            "start."
        ),
        "unknown_url": _("There is no such page."),
        "not_found": _("This does not exist, or has been deleted."),
        "recording_off": _("Chats are no longer kept on this server. Start a new chat to continue."),
        "decided": _("This comparison has already been decided."),
        "request_too_large": _("This is too large for the server to accept."),
        "context_length_exceeded": _(
            "This is too long for the model. Shorten the message or the system prompt, or ask for a shorter answer in "
            "the settings."
        ),
        "model_not_found": _("This model is not available on this server, or no longer available."),
        "engine_overloaded": _("The model has too many requests at the moment. Try again soon."),
        "engine_error": _("The model failed on this request. The server's log says why."),
        "storage_full": _("The server cannot store anything at the moment: its disk is full."),
        "storage_unavailable": _("The server's database is not responding. Try again soon."),
        "storage_damaged": _("The server's database is damaged. The server's log says how."),
        "shutting_down": _("The server is shutting down. Try again when it is back."),
    }
