use super::*;

fn only(bytes: &[u8]) -> String {
    let problems = Document::parse(bytes).unwrap_err();
    assert_eq!(problems.len(), 1);
    problems[0].to_string()
}

#[test]
fn what_is_not_json_is_refused_with_its_place() {
    for (bytes, expected) in [
        (&b""[..], "1:1: $: is empty"),
        (b" \n\t ", "1:1: $: is empty"),
        (b"{", "1:1: $: is not JSON: EOF while parsing an object"),
        (b"{\n  \"a\": 1,\n}", "3:1: $: is not JSON: key must be a string"),
        (b"{} x", "1:4: $: is not JSON: trailing characters"),
        (b"{}\n{}", "2:1: $: is not JSON: trailing characters"),
        (b"\xef\xbb\xbf{}", "1:1: $: begins with a byte order mark; save it as plain UTF-8"),
        (b"{\n \"\xc3\xa4\xff\": 1}", "2:4: $: is not UTF-8"),
        (b"{\"a\0\": 1}", "1:4: $: holds a NUL byte"),
        (b"{\"a\": 01}", "1:8: $: is not JSON: invalid number"),
        (b"{\"a\": NaN}", "1:7: $: is not JSON: expected value"),
        (b"{'a': 1}", "1:2: $: is not JSON: key must be a string"),
        (b"// hi\n{}", "1:1: $: is not JSON: expected value"),
        ("{\"ä\" 1}".as_bytes(), "1:6: $: is not JSON: expected `:`"),
    ] {
        assert_eq!(only(bytes), expected, "{}", String::from_utf8_lossy(bytes));
    }
    let large = vec![b' '; MAX_BYTES + 1];
    assert_eq!(only(&large), "1:1: $: 16777217 bytes are more than the 16777216 that are read");
}

#[test]
fn every_cut_of_a_document_is_refused() {
    let whole = br#"{"a": [1, "x", {"b": null}], "c": true}"#;
    for cut in 0..whole.len() {
        assert!(Document::parse(&whole[..cut]).is_err(), "cut at {cut}");
    }
}

#[test]
fn depth_costs_no_stack() {
    for depth in [100_000, 4_000_000] {
        let open = "[".repeat(depth);
        assert!(only(open.as_bytes()).contains("EOF while parsing a list"));
        let balanced = format!("{open}{}", "]".repeat(depth));
        let document = Document::parse(balanced.as_bytes()).unwrap();
        assert!(document.root().object(&[]).is_none());
        let problems = document.finish::<()>(None).unwrap_err();
        assert_eq!(problems[0].to_string(), "1:1: $: expected an object, found an array");
        assert_eq!(document.root().items().unwrap().len(), 1);
        let objects = format!("{{\"a\":{}", "{\"a\":".repeat(depth / 5));
        assert!(only(objects.as_bytes()).contains("EOF"));
    }
}

#[test]
fn places_count_characters_and_paths_quote_odd_keys() {
    let text = "{ \"ä\": [ \"ö\", 1 ],\n\t\"b-c\": { \"x y\": [2] } }";
    let document = Document::parse(text.as_bytes()).unwrap();
    let entries = document.root().entries().unwrap();
    let place = |node: &Node<'_>| node.place().to_string();
    assert_eq!(place(&document.root()), "1:1: $");
    assert_eq!(place(&entries[0].key), "1:3: $[\"ä\"]");
    assert_eq!(place(&entries[0].value.items().unwrap()[1]), "1:15: $[\"ä\"][1]");
    let inner = &entries[1].value.entries().unwrap()[0];
    assert_eq!(place(&inner.value.items().unwrap()[0]), "2:19: b-c[\"x y\"][0]");
}

#[test]
fn keys_are_known_once_and_spelt_any_way() {
    let text = br#"{"n\u0061me": "a", "name": "b", "nam": 1, "zzzzzz": {"deep": [[]]}}"#;
    let document = Document::parse(text).unwrap();
    let object = document.root().object(&["name", "size"]).unwrap();
    assert_eq!(object.optional("name").unwrap().string().as_deref(), Some("a"));
    assert!(object.required("size").is_none());
    let problems: Vec<String> = document.finish(Some(())).unwrap_err().iter().map(ToString::to_string).collect();
    assert_eq!(
        problems,
        [
            "1:1: $: the key \"size\" is missing",
            "1:20: name: the key \"name\" is already used on line 1",
            "1:33: nam: unknown key \"nam\"; did you mean \"name\"?",
            "1:43: zzzzzz: unknown key \"zzzzzz\"",
        ]
    );
}

#[test]
fn kinds_are_not_converted() {
    let text = br#"["1", 1, 1.0, 1e3, -1, true, null, [], {}, "\ud800", "a\u0000"]"#;
    let document = Document::parse(text).unwrap();
    let items = document.root().items().unwrap();
    assert_eq!(items.iter().filter_map(|node| node.integer(0..=u64::MAX)).collect::<Vec<_>>(), [1]);
    assert_eq!(items.iter().filter_map(Node::string).collect::<Vec<_>>(), ["1"]);
    assert_eq!(items.iter().filter_map(Node::bool).collect::<Vec<_>>(), [true]);
    assert_eq!(items.iter().filter_map(Node::scalar).count(), 6);
    let messages: Vec<String> = document.finish(Some(())).unwrap_err().iter().map(ToString::to_string).collect();
    assert!(messages.contains(&"1:10: $[2]: expected a whole number, found 1.0".to_owned()));
    assert!(messages.contains(&"1:30: $[6]: expected a string, found null".to_owned()));
    assert!(messages.iter().any(|message| message.starts_with("1:44: $[9]: ")), "{messages:?}");
    assert!(messages.iter().any(|message| message.ends_with("$[10]: holds a NUL character")), "{messages:?}");
}

#[test]
fn problems_are_bounded() {
    let text = format!("[{}1]", "1,".repeat(100_000));
    let document = Document::parse(text.as_bytes()).unwrap();
    assert!(document.root().list(Node::string).is_none());
    let problems = document.finish::<()>(None).unwrap_err();
    assert_eq!(problems.len(), MAX_PROBLEMS + 1);
    assert_eq!(problems[MAX_PROBLEMS].message, "99901 more problems are not listed");
}

#[test]
fn entries_are_bounded() {
    let text = format!("[{}1]", "1,".repeat(MAX_ENTRIES));
    let document = Document::parse(text.as_bytes()).unwrap();
    assert_eq!(document.root().items().unwrap().len(), MAX_ENTRIES);
    assert_eq!(document.finish(Some(())).unwrap_err()[0].message, "more than 1048576 entries");
}

#[test]
fn many_mistakes_on_one_long_line_cost_little() {
    // Counting a column for each of these would take minutes.
    let text = format!("{{{}\"b\": 1}}", "\"a\": 1, ".repeat(1 << 19));
    let document = Document::parse(text.as_bytes()).unwrap();
    assert_eq!(document.root().entries().unwrap().len(), 2);
    assert_eq!(document.finish(Some(())).unwrap_err().len(), MAX_PROBLEMS + 1);
}
