"""Statistics of a text: words, sentences, reading time, the most frequent words.

Event: {"text": "...", "top": 10}; `top` may be left out. Try it:

    nanogrid deploy examples/python-wordcount
    nanogrid invoke wordcount -d @examples/python-wordcount/event.json
"""

import re
from collections import Counter

import nanogrid

WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)*")
SENTENCE_END = re.compile(r"[.!?]+(?=\s|$)")
WORDS_PER_MINUTE = 238  # Silent reading of English: Brysbaert, Journal of Memory and Language 109 (2019).


def handler(event, context):
    """Counts paragraph by paragraph, and reports after each how far it is."""
    text = event["text"]
    counts, longest, sentences = Counter(), "", 0
    paragraphs = [part for part in re.split(r"\n\s*\n", text) if part.strip()]
    for done, paragraph in enumerate(paragraphs, 1):
        words = WORD.findall(paragraph)
        counts.update(word.lower() for word in words)
        longest = max([longest, *words], key=len)
        sentences += len(SENTENCE_END.findall(paragraph))
        nanogrid.progress(done / len(paragraphs))
    total = counts.total()
    print(f"{len(paragraphs)} paragraphs, {total} words")
    return {
        "characters": len(text),
        "words": total,
        "unique_words": len(counts),
        "sentences": sentences,
        "paragraphs": len(paragraphs),
        "longest_word": longest,
        "reading_time_s": round(total * 60 / WORDS_PER_MINUTE),
        "top": [{"word": word, "count": count} for word, count in counts.most_common(event.get("top", 10))],
    }
