"""Conversations and question/answer entries -> plain documents for pretraining.

A document consists of lines `name: text`, like a script, without chat tokens. The base model should learn language and
turn-taking, but not the chat format, which supervised fine-tuning teaches. Names are two different pseudonyms, chosen
by a hash of the conversation, so they are stable and reveal nothing about the people.
"""

from tutelage.data.messages import Messages
from tutelage.data.records import Document
from tutelage.data.sources import CHATTERBOT, CHITCHAT, Conversation, QuestionAnswers
from tutelage.data.splits import unit_hash

NAMES = {
    "en": (
        "Abe Ada Adam Aida Alan Alba Alex Alma Amir Amy Ana Andy Anna Anya April Aria Arlo Asa Ash Ava Axel Ayla Bea "
        "Bela Ben Beth Bill Blake Bo Boris Brad Bruno Bryn Cal Cara Carl Casey Chad Chen Chloe Clara Cleo Cody Cora "
        "Cruz Dale Dan Dana Dara Dave Dawn Dean Della Dev Diana Dina Dora Drew Duke Earl Eden Edith Eli Ella Elsa Emil "
        "Emma Enzo Eric Erin Esme Ethan Eva Evan Ezra Faith Fay Felix Fern Finn Flora Fred Gabe Gail Gary Gia Gina "
        "Glen Greta Gus Gwen Hal Hana Hank Hazel Heidi Henry Hope Hugo Ian Ida Igor Ines Ira Iris Isla Ivan Ivy Jack "
        "Jade Jane Jay Jean Jed Jess Jill Joan Joel John Josh Joy Juan Jude Judy Julia June Kai Kara Karl Kate Kay "
        "Keith Ken Kira Kurt Kyle Lana Lara Lars Lea Lena Leo Liam Lila Lily Lisa Liz Lola Lou Luca Lucy Luis Luke "
        "Luna Lynn Mae Maya Marc Maria Mark Mary Matt Max Meg Mei Mia Mike Mila Milo Mina Moe Mona Nadia Nate Ned Neil "
        "Nell Nick Nina Noah Noel Nora Odin Olga Oli Omar Opal Oscar Otto Owen Pam Pat Paul Penny Pete Pia Quinn Rae "
        "Raj Rani Ravi Ray Rex Rita Rob Rosa Ross Roy Ruby Russ Ruth Ryan Sam Sara Saul Sean Seth Sid Skye Stan Sue "
        "Tara Ted Tess Theo Tim Tina Toby Tom Tony Uma Vera Vic Viola Wade Walt Wes Will Yara Yuri Zane Zara Zoe"
    ).split(),
    "zh": "小明 小红 小华 小丽 小军 小芳 小强 小燕 小刚 小梅 小东 小雪 小林 小云 小波 小玉 小海 小兰 小龙 小月".split(),
}


def from_conversation(conversation: Conversation, salt: str) -> Document:
    names = pseudonyms(conversation.id, salt, "en")
    return Document(_script(conversation.messages, names), None, CHITCHAT, lang="en", conversation=conversation.id)


def from_questions(entry: QuestionAnswers, salt: str) -> list[Document]:
    """One document per answer, so that no answer is followed by another one."""
    documents = []
    for answer in entry.answers:
        messages = [{"role": "user", "content": entry.question}, {"role": "assistant", "content": answer}]
        names = pseudonyms(f"{entry.question}\n{answer}", salt, entry.lang)
        documents.append(Document(_script(messages, names), None, CHATTERBOT, lang=entry.lang))
    return documents


def pseudonyms(id: str, salt: str, lang: str) -> dict[str, str]:
    """Two different names, one for the user and one for the assistant."""
    names = NAMES[lang]
    first = int(unit_hash("name", salt, id, "user") * len(names))
    step = 1 + int(unit_hash("name", salt, id, "assistant") * (len(names) - 1))
    return {"user": names[first], "assistant": names[(first + step) % len(names)]}


def _script(messages: Messages, names: dict[str, str]) -> str:
    return "\n".join(f"{names[message['role']]}: {message['content']}" for message in messages)
