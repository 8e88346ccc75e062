//! What SQLite says while a statement runs, without the values that it quotes: they are people's, and no log's.
//!
//! By what is known to be harmless rather than by the values that were bound: a value may come out of a table, or be what
//! an expression made of several.

use std::collections::HashSet;

/// The words of the messages that SQLite, FTS5, R-Tree and JSON have for a statement that runs. A word that is missing here
/// costs a message some of its sense, never somebody a secret.
const WORDS: &str = "a abort an and are argument arguments array as at authorized bad be been being big blob body but by \
    can cannot changed character close column columns complex config constraint contains content contentless corrupt \
    database datatype deep delete delete_all deleted depth detail differ directive disabled does due element ends \
    error even exceeds expected expression external failed find first fts3tokenize fts5 fts5vocab full function \
    functions glob hold holds in input insert integer integrity interrupted inverted invalid is json json_array \
    json_each json_error_position json_extract json_group_array json_group_object json_insert json_object json_patch \
    json_quote json_remove json_replace json_set json_tree json_type json_valid jsonb keys label labels large levels \
    like local locked logic malformed many match maximum memory mismatch missing mode modified modify must near needs \
    negative nested no non not number numeric object odd of offset on only or out overflow overflowed parameter parse \
    parser path pattern phrase positive queries query rank read readonly recursion requires rollback rtree schema \
    second single size some special sql stack starting statement string such supported support syntax table tables \
    text than that the third time to token tokenizer too tree trigger type unable unavailable unknown unrecognized \
    unterminated update use used user utf valid value values vfs virtual when while with write wrong zero";

/// Punctuation that belongs to messages; any other may be part of a value.
const MARKS: &str = "'\"(),.:;-";

/// The message with `…` for whatever is neither a word of the statement nor one of SQLite's own.
pub fn without_values(message: &str, sql: &str) -> String {
    let known: HashSet<String> = words(WORDS).chain(words(sql)).map(str::to_lowercase).collect();
    let mut kept: Vec<&str> = Vec::new();
    for part in message.split_whitespace() {
        if is_known(part, &known) {
            kept.push(part);
        } else if kept.last() != Some(&"…") {
            kept.push("…");
        }
    }
    kept.join(" ")
}

fn is_known(part: &str, known: &HashSet<String>) -> bool {
    let has_words = words(part).next().is_some();
    words(part).all(|word| known.contains(&word.to_lowercase()))
        && part.chars().filter(|c| !is_of_word(*c)).all(|c| MARKS.contains(c))
        && (has_words || part.len() <= 3) // a value may be all punctuation
}

fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split(|c| !is_of_word(c)).filter(|word| !word.is_empty())
}

fn is_of_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_of_the_statement_and_of_sqlite_stay_and_nothing_else() {
        let sql = "SELECT diary FROM f WHERE f MATCH ?";
        for (message, shown) in [
            ("fts5: syntax error near \"\"", "fts5: syntax error near \"\""),
            ("fts5: syntax error near \"AND\"", "fts5: syntax error near \"AND\""),
            ("no such column: Diary", "no such column: Diary"),
            ("no such column: love letter", "no such column: …"),
            ("bad JSON path: '$.love\n'", "bad JSON path: …"),
            ("bad JSON path: 'f-4711'", "bad JSON path: …"),
            ("bad JSON path: '!#$!'", "bad JSON path: …"),
            ("bad JSON path: 'дневник'", "bad JSON path: …"),
            ("bad JSON path: '----'", "bad JSON path: …"),
            ("malformed JSON", "malformed JSON"),
            ("", ""),
        ] {
            assert_eq!(without_values(message, sql), shown);
        }
    }
}
