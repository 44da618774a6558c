"""The texts that the chat page's scripts show, translated. The scripts fill in the words in braces."""

from collections.abc import Callable
from typing import Any

from tutelage.web.problems import problems


def strings(_: Callable[[str], str]) -> dict[str, Any]:
    """The texts, by the names that the scripts use. `_` translates."""
    return {
        "answer": _("Answer"),
        "your_answer": _("Your answer"),
        "endings": {
            "length": _("Cut off after {tokens} tokens. The limit is in the settings."),
            "cancelled": _("Stopped."),
            "unfinished": _("This answer is not finished."),
            "content_filter": _("Stopped by this server's moderation."),
            "refused": _("This server's moderation does not allow an answer to this."),
        },
        "tokens": _("{tokens} tokens"),
        "seconds": _("{seconds} s"),
        "dropped": _(
            "The chat is longer than the model's context. The model no longer sees the {count} messages above."
        ),
        "context": _(
            "At most {most}, which is half of the model's context of {context} tokens. If this is empty: {usual}."
        ),
        "in_force": {
            "temperature": _("Temperature {value}"),
            "min_p": _("Min p {value}"),
            "top_p": _("Top p {value}"),
            "seed": _("Seed {value}"),
            "limit": _("Answers up to {value} tokens"),
            "system": _("System prompt: {value}"),
        },
        "writing": _("The answer is being written."),
        "done": _("The answer is complete."),
        "broken": _("The connection was lost here."),
        "problems": problems(_),
        "offline": _("The server cannot be reached."),
        "copied": _("Copied."),
        "not_copied": _("The browser did not allow copying."),
        "recording": {"kept": _("Kept"), "private": _("Not kept"), "temporary": _("Temporary")},
        "banner": _("Your chats are not kept. You can choose to keep them, and to let them train the next model."),
        "banner_admin": _("This server does not keep chats. As an admin you can allow it; then each person decides."),
        "temporary_feedback": _("A temporary chat is not kept, and neither is your feedback on it."),
        "from_next_chat": _(
            "This chat began before chats were kept. Your feedback will be kept from the next chat on."
        ),
        "why_good": _("What was good?"),
        "why_bad": _("What was wrong?"),
        "thanks": _("Thank you. Your feedback is kept."),
        "taken_back": _("Feedback withdrawn."),
        "chosen": _("Chosen."),
        "new_answer": _("the new answer"),
        "earlier_answer": _("the earlier answer"),
        "no_second": _("There is no second answer to compare."),
        "same_second": _("The second answer is the same, word for word. Raise the temperature to get a different one."),
        "leave": _("Leave this chat?"),
        "leave_text": _("It is not kept and will be lost when you leave."),
        "leave_yes": _("Leave"),
        "untitled": _("Untitled"),
        "new_chat": _("New chat"),
        "rename": _("Rename"),
        "save": _("Save"),
        "saved": _("Saved."),
        "delete": _("Delete"),
        "deleted": _("Deleted."),
        "delete_one": _("“{title}” and all feedback on its answers will be deleted."),
        "delete_all": _("Delete all my chats"),
        "delete_all_text": _("All your chats and all your feedback on their answers will be deleted."),
        "withdraw": _("Stop keeping my chats"),
        "withdraw_text": _("All kept chats and all your feedback on their answers will be deleted."),
    }


def reasoning_label(_: Callable[[str], str]) -> str:
    """What the folded reasoning of an answer is called."""
    return _("Reasoning")


def general_suggestions(_: Callable[[str], str]) -> list[str]:
    """What to say first to a model that has no held-out prompts."""
    return [_("How was your day?"), _("What do you like to eat?"), _("Recommend me a film"), _("Tell me a joke")]


def reasons(_: Callable[[str], str]) -> dict[str, dict[str, str]]:
    """The reasons to choose from after a thumb up or down, by their names in `feedback.py`."""
    return {
        "up": {
            "helpful": _("Helpful"),
            "true": _("Correct"),
            "well_said": _("Well put"),
            "kind": _("Kind"),
        },
        "down": {
            "instruction": _("Not what I asked"),
            "untrue": _("Made up"),
            "unfit": _("Inappropriate"),
            "repetitive": _("Repetitive or cut off"),
            "language": _("Wrong language"),
            "harmful_advice": _("Harmful advice"),
            "sexual": _("Sexual"),
            "violent": _("Violent"),
            "encourages_harm": _("Encourages harm"),
            "denigrates": _("Denigrates a group"),
            "opinion": _("Gives its own opinion"),
        },
    }
