"""Conversations and question/answer entries -> plain documents for pretraining.

A document has one line per turn, without chat tokens and without the speakers' names. The base model should learn
language and turn-taking, but not the chat format, which supervised fine-tuning teaches. With a name at the start of
each line, a tenth of all tokens would be names, and answers would go on with a line of another speaker.
"""

from tutelage.data.messages import Messages
from tutelage.data.records import Document
from tutelage.data.sources import CHATTERBOT, CHITCHAT, Conversation, QuestionAnswers


def from_conversation(conversation: Conversation) -> Document:
    text = _script(conversation.messages)
    return Document(text, None, CHITCHAT, lang="en", conversation=conversation.id)


def from_questions(entry: QuestionAnswers) -> list[Document]:
    """One document per answer, so that no answer is followed by another one."""
    return [Document(f"{entry.question}\n{answer}", None, CHATTERBOT, lang=entry.lang) for answer in entry.answers]


def _script(messages: Messages) -> str:
    return "\n".join(message["content"] for message in messages)
