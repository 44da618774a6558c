"""What went wrong, in the reader's language: an error's code -> a sentence for a person.

Programs get the error's own message, in English and with its details. A code that is not here has only that.
"""

from collections.abc import Callable


def problems(_: Callable[[str], str]) -> dict[str, str]:
    """Sentences by code, for all that can happen on a page."""
    return {
        "not_signed_in": _("Sign in first."),
        "csrf": _("The page is out of date. Reload it."),
        "cross_origin": _("This request comes from another site."),
        "insufficient_permissions": _("Your role does not allow this."),
        "link_used": _(
            "This link was used already, or is too old. Ask for a new one; the server prints one at each start."
        ),
        "unknown_url": _("There is no such page."),
        "not_found": _("This is not there, or no longer."),
        "recording_off": _("Chats are no longer kept here. Begin a new one to go on."),
        "decided": _("This comparison is decided already."),
        "request_too_large": _("This is more than the server takes at once."),
        "context_length_exceeded": _(
            "This is too long for the model. Shorten the message or the system prompt, or ask for a shorter answer in "
            "the settings."
        ),
        "model_not_found": _("This model is not served here, or no longer."),
        "engine_overloaded": _("Too many are asking the model at once. Try again soon."),
        "engine_error": _("The model failed on this. The server's log says why."),
        "storage_full": _("The server cannot store anything now: its disk is full."),
        "storage_unavailable": _("The server's database does not answer. Try again soon."),
        "shutting_down": _("The server is being stopped. Try again when it is back."),
    }
