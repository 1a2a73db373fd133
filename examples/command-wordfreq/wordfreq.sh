#!/bin/sh
# Counts words: the text comes on stdin, the ten most frequent words leave as a JSON object on stdout.
set -eu

counted=$(tr '[:upper:]' '[:lower:]' | tr -cs '[:alnum:]' '\n' | sed '/^$/d' | sort | uniq -c | sort -k1,1nr -k2)
[ -n "$counted" ] || { echo "the text has no words" >&2; exit 1; }
echo "$(printf '%s\n' "$counted" | wc -l) different words" >&2

printf '%s\n' "$counted" | sed 10q | {
    separator='{'
    while read -r count word; do
        printf '%s"%s": %s' "$separator" "$word" "$count"
        separator=', '
    done
    printf '}\n'
}
