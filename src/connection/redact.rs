//! What SQLite says while a statement runs, without the values that it quotes: they are people's, and no log's.
//!
//! By what is known to be harmless rather than by the values that were bound: a value may come out of a table, or be what
//! an expression made of several.

use std::collections::HashSet;

/// The words of the messages that SQLite, FTS5, R-Tree and JSON have for a statement that runs. A word that is missing here
/// costs a message some of its sense, never somebody a secret.
const WORDS: &str = "\
    a abort add after aggregate all already alter an analyze and another any are argument arguments array as at \
    attempt authorized automerge bad be been before being between big blob body boolean but by can cannot case cast \
    changed character check circular circularly clause close collate collation column columns columnsize complex \
    config conflict constraint constructor contains content contentless context corrupt create crisismerge cross \
    database datatype date decimal deep default defined definition delete delete_all deleted depth detail differ \
    different directive directives disabled distinct does double drop due duplicate each element else end ending \
    ends error escape even exceeds exists expected explain expression external failed find finite first flags float \
    foreign fraction frame from fts3tokenize fts5 fts5vocab full function functions generated glob group having \
    hold holds if in index infinity inner input insert integer integrity interrupted into invalid inverted is \
    isnull join json json_array json_each json_error_position json_extract json_group_array json_group_object \
    json_insert json_object json_patch json_quote json_remove json_replace json_set json_tree json_type json_valid \
    jsonb julian key keys label labels languageid large left length levels like limit local locale locales locked \
    logic loop malformed many match materialized max maximum median memory merge mismatch missing mode modified \
    modify module multiple must name nan natural near nearest needs negative nested newer no node nodes non not \
    notnull nth_value ntile null number numeric object odd of offset on only open operand operator optimize option \
    or order out outer overflow overflowed parameter parse parser path pattern percentile pgsz phrase phrases \
    positive possible pragma prefix primary queries query range rank ranks rbu read readonly real rebuild recursion \
    recursive reference references regexp reindex rename replace requested requires reserved returning right \
    rollback row rowid rows rtree same schema second secure_delete select sequence set single size some special sql \
    stack starting statement stored strict string such support supported syntax table tables text than that the \
    then third time to token tokenize tokenizer tokenizers too tree trigger type unable unavailable union unique \
    unix unknown unrecognized unterminated update upsert use used user usermerge using utf vacuum valid value \
    values version vfs view virtual vtable when where while window with without write wrong zero";

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
            ("bad JSON path: '$.love'", "bad JSON path: …"),
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
