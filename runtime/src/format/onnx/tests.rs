use super::*;

/// A message from its fields.
fn message(fields: &[(u64, &[u8])]) -> Vec<u8> {
    let mut out = Vec::new();
    for (number, body) in fields {
        varint(number << 3 | 2, &mut out);
        varint(body.len() as u64, &mut out);
        out.extend_from_slice(body);
    }
    out
}

/// A field that holds a number.
fn number(field: u64, value: u64) -> Vec<u8> {
    let mut out = Vec::new();
    varint(field << 3, &mut out);
    varint(value, &mut out);
    out
}

fn varint(mut v: u64, out: &mut Vec<u8>) {
    while v >= 0x80 {
        out.push(v as u8 | 0x80);
        v >>= 7;
    }
    out.push(v as u8);
}

fn entry_of(key: &str, value: &str) -> Vec<u8> {
    message(&[(1, key.as_bytes()), (2, value.as_bytes())])
}

/// A float32 tensor (2, 3), inside or outside of the file.
fn tensor(name: &str, location: Option<&str>) -> Vec<u8> {
    let mut out = [number(1, 2), number(1, 3), number(2, 1), message(&[(8, name.as_bytes())])].concat();
    if let Some(location) = location {
        for (key, value) in [("location", location), ("offset", "8"), ("length", "24")] {
            out.extend(message(&[(13, &entry_of(key, value))]));
        }
        out.extend(number(14, 1));
    }
    out
}

fn node(op: &str, domain: &str, inputs: &[&str], outputs: &[&str], attributes: &[Vec<u8>]) -> Vec<u8> {
    let mut fields: Vec<(u64, &[u8])> = inputs.iter().map(|n| (1, n.as_bytes())).collect();
    fields.extend(outputs.iter().map(|n| (2, n.as_bytes())));
    fields.extend([(4, op.as_bytes()), (7, domain.as_bytes())]);
    fields.extend(attributes.iter().map(|a| (5, a.as_slice())));
    message(&fields)
}

/// A float32 input or output of dimensions 1, `T` and 8.
fn port_of(name: &str) -> Vec<u8> {
    let dims =
        [message(&[(1, &number(1, 1))]), message(&[(1, &message(&[(2, b"T")]))]), message(&[(1, &number(1, 8))])];
    let tensor = [number(1, 1), message(&[(2, &dims.concat())])].concat();
    message(&[(1, name.as_bytes()), (2, &message(&[(1, &tensor)]))])
}

fn model(graph: &[u8]) -> Vec<u8> {
    [number(1, 8), message(&[(7, graph)])].concat()
}

fn locations(bytes: &[u8]) -> Vec<String> {
    Onnx::parse(bytes).unwrap().external.into_iter().map(|e| e.location).collect()
}

#[test]
fn ports_weights_and_metadata_are_read() {
    let graph = message(&[
        (1, &node("Gather", "", &["embed", "ids"], &["x"], &[])),
        (1, &node("MatMul", "", &["x", "w"], &["y"], &[])),
        (5, &tensor("embed", None)),
        (5, &tensor("w", Some("model.data"))),
        (11, &port_of("ids")),
        (11, &port_of("w")), // before IR version 4, weights stood among the inputs too
        (12, &port_of("y")),
    ]);
    let bytes = [model(&graph), message(&[(14, &entry_of("edgeft.task", "generate"))])].concat();
    let onnx = Onnx::parse(&bytes).unwrap();
    let names = |ports: &[Port]| ports.iter().map(|p| p.name.clone()).collect::<Vec<_>>();
    assert_eq!((names(&onnx.inputs), names(&onnx.outputs)), (vec!["ids".to_owned()], vec!["y".to_owned()]));
    assert_eq!(
        (onnx.inputs[0].ty, onnx.inputs[0].dims.as_slice()),
        (ElementType::F32, &[Dim::Fixed(1), Dim::Named("T".into()), Dim::Fixed(8)][..])
    );
    assert_eq!(onnx.metadata("edgeft.task"), Some("generate"));
    let weights: Vec<_> = onnx.weights.iter().map(|w| (w.name.as_str(), w.bytes, w.gathered)).collect();
    assert_eq!(weights, [("embed", 24, true), ("w", 24, false)]);
    let outside = External { tensor: "w".into(), location: "model.data".into(), offset: 8, length: Some(24) };
    assert_eq!((&onnx.weights[0].external, onnx.weights[1].external.as_ref()), (&None, Some(&outside)));
    assert_eq!(onnx.external, [outside]);
}

#[test]
fn the_head_of_the_file_and_the_operators_of_the_main_graph_are_read() {
    let branch = message(&[(6, &message(&[(1, &node("Inside", "", &[], &[], &[]))]))]);
    let graph = message(&[
        (1, &node("MatMul", "", &["x", "w"], &["y"], &[])),
        (1, &node("MatMul", "ai.onnx", &["y", "w"], &["z"], &[])),
        (1, &node("Attention", "com.microsoft", &["z"], &["a"], &[])),
        (1, &node("If", "", &["a"], &["b"], &[branch])),
    ]);
    let sets = [("", 21), ("com.microsoft", 1)]
        .map(|(domain, version)| [message(&[(1, domain.as_bytes())]), number(2, version)].concat());
    let bytes = [model(&graph), message(&[(2, b"somebody"), (8, &sets[0]), (8, &sets[1])])].concat();
    let onnx = Onnx::parse(&bytes).unwrap();
    assert_eq!((onnx.ir_version, onnx.producer.as_str()), (8, "somebody"));
    assert_eq!(onnx.opsets, [(String::new(), 21), ("com.microsoft".to_owned(), 1)]);
    let operators: Vec<_> = onnx.operators.iter().map(|(op, n)| (op.as_str(), *n)).collect();
    assert_eq!(operators, [("If", 1), ("MatMul", 2), ("com.microsoft.Attention", 1)]);
}

#[test]
fn bytes_in_a_file_are_as_many_as_the_model_says_else_as_the_shape_has() {
    let weight = |ty: u64, entries: &[(&str, &str)]| {
        let mut tensor = [number(1, 2), number(1, 3), number(2, ty), message(&[(8, b"w")])].concat();
        entries.iter().for_each(|(k, v)| tensor.extend(message(&[(13, &entry_of(k, v))])));
        tensor.extend(number(14, u64::from(!entries.is_empty())));
        Onnx::parse(&model(&message(&[(5, &tensor)]))).unwrap().weights[0].stored_bytes()
    };
    assert_eq!(weight(1, &[]), Some(24));
    assert_eq!(weight(22, &[]), Some(3)); // six codes of four bits
    assert_eq!(weight(8, &[]), None); // texts
    assert_eq!(weight(1, &[("location", "d")]), Some(24));
    assert_eq!(weight(8, &[("location", "d"), ("length", "70")]), Some(70));
}

#[test]
fn an_embedding_that_is_the_head_too_is_read_whole() {
    let graph = message(&[
        (1, &node("Gather", "", &["embed", "ids"], &["x"], &[])),
        (1, &node("Transpose", "", &["embed"], &["head"], &[])),
        (5, &tensor("embed", None)),
    ]);
    assert!(!Onnx::parse(&model(&graph)).unwrap().weights[0].gathered);
}

#[test]
fn tables_of_the_operators_of_onnx_runtime_are_looked_up_in() {
    let attention = ["q", "k", "v", "pk", "pv", "last", "total", "cos", "sin"];
    let graph = message(&[
        (1, &node("GatherBlockQuantized", "com.microsoft", &["codes", "ids", "scales"], &["x"], &[])),
        (1, &node("MatMulNBits", "com.microsoft", &["x", "w", "w.scales"], &["q"], &[])),
        (1, &node("GroupQueryAttention", "com.microsoft", &attention, &["y"], &[])),
        (5, &tensor("codes", None)),
        (5, &tensor("scales", None)),
        (5, &tensor("w", None)),
        (5, &tensor("w.scales", None)),
        (5, &tensor("cos", None)),
        (5, &tensor("sin", None)),
    ]);
    let onnx = Onnx::parse(&model(&graph)).unwrap();
    let gathered: Vec<_> = onnx.weights.iter().filter(|w| w.gathered).map(|w| w.name.as_str()).collect();
    assert_eq!(gathered, ["codes", "scales", "cos", "sin"]);
}

#[test]
fn weights_outside_are_found_wherever_a_graph_hides_them() {
    let hidden = |location: &str| message(&[(5, &tensor("w", Some(location)))]);
    let attribute = |field: u64, body: &[u8]| message(&[(field, body)]);
    let constant = |location: &str| attribute(5, &tensor("", Some(location)));
    let sparse = |location: &str| message(&[(1, &tensor("", Some(location)))]);
    let places: Vec<(&str, Vec<u8>)> = vec![
        ("a constant", model(&message(&[(1, &node("Constant", "", &[], &["c"], &[constant("evil")]))]))),
        (
            "a list of tensors",
            model(&message(&[(1, &node("C", "", &[], &[], &[attribute(10, &tensor("", Some("evil")))]))])),
        ),
        ("a branch", model(&message(&[(1, &node("If", "", &[], &[], &[attribute(6, &hidden("evil"))]))]))),
        ("a list of graphs", model(&message(&[(1, &node("C", "", &[], &[], &[attribute(11, &hidden("evil"))]))]))),
        ("a sparse weight", model(&message(&[(15, &sparse("evil"))]))),
        ("a sparse constant", model(&message(&[(1, &node("C", "", &[], &[], &[attribute(22, &sparse("evil"))]))]))),
        (
            "a function",
            [message(&[(25, &message(&[(7, &node("C", "", &[], &[], &[constant("evil")]))]))]), model(&[])].concat(),
        ),
        ("a default of a function", [message(&[(25, &message(&[(11, &constant("evil"))]))]), model(&[])].concat()),
        ("training", [message(&[(20, &message(&[(2, &hidden("evil"))]))]), model(&[])].concat()),
        ("the first of two graphs", [model(&hidden("evil")), model(&[])].concat()),
    ];
    for (place, bytes) in places {
        assert_eq!(locations(&bytes), ["evil"], "{place}");
    }
}

#[test]
fn a_tensor_told_in_two_parts_is_outside_even_if_neither_part_says_so() {
    let part = message(&[(13, &entry_of("location", "evil"))]);
    assert_eq!(locations(&model(&message(&[(5, &part)]))), ["evil"]);
    let twice = [message(&[(13, &entry_of("location", "a"))]), message(&[(13, &entry_of("location", "b"))])].concat();
    assert_eq!(locations(&model(&message(&[(5, &twice)]))), ["a", "b"]);
}

#[test]
fn one_buffer_serves_only_where_nothing_else_reads_the_past() {
    let attention = node("GroupQueryAttention", "com.microsoft", &["q", "k", "v", "pk", "pv"], &["y", "ck", "cv"], &[]);
    let other = node("Shape", "", &["pk"], &["n"], &[]);
    let pairs = |nodes: &[&[u8]]| {
        let mut fields: Vec<(u64, &[u8])> = nodes.iter().map(|n| (1, *n)).collect();
        let (pk, pv) = (port_of("pk"), port_of("pv"));
        fields.extend([(11, pk.as_slice()), (11, pv.as_slice())]);
        Onnx::parse(&model(&message(&fields))).unwrap().in_place
    };
    let pair = |a: &str, b: &str| (a.to_owned(), b.to_owned());
    assert_eq!(pairs(&[&attention]), [pair("pk", "ck"), pair("pv", "cv")]);
    assert_eq!(pairs(&[&attention, &other]), [pair("pv", "cv")]);
    let inside = node("If", "", &[], &[], &[message(&[(6, &message(&[(1, &other)]))])]);
    assert_eq!(pairs(&[&inside, &attention]), [pair("pv", "cv")]);
}

#[test]
fn weights_in_blocks_are_told_by_the_attribute() {
    let dequantize = |attribute: &str| {
        let node = node("DequantizeLinear", "", &["codes", "scales"], &["w"], &[message(&[(1, attribute.as_bytes())])]);
        Onnx::parse(&model(&message(&[(1, &node)]))).unwrap().blocked
    };
    assert!(dequantize("block_size") && !dequantize("axis"));
}

#[track_caller]
fn refuses(bytes: &[u8], because: &str) {
    let error = Onnx::parse(bytes).unwrap_err().to_string();
    assert!(error.contains(because), "{error}");
}

#[test]
fn what_is_broken_is_told() {
    refuses(b"", "no graph in it");
    refuses(b"GGUF....", "not a whole ONNX file");
    refuses(&message(&[(7, b"")]), "does not say its IR version");
    let elsewhere = [message(&[(8, b"w")]), number(14, 1)].concat();
    refuses(&model(&message(&[(5, &elsewhere)])), "tensor `w` is in another file, but does not say in which");
    refuses(&model(&message(&[(5, &number(1, 1).repeat(33))])), "more than 32 dimensions of a tensor");
    let whole = model(&message(&[(5, &tensor("w", None))]));
    refuses(&whole[..whole.len() - 1], "not a whole ONNX file: in the model, field 7");
    refuses(
        &model(&message(&[(5, &[number(1, u64::MAX), message(&[(8, b"w")])].concat())])),
        "tensor `w` has dimensions [-1]",
    );
    let huge = [number(1, 1 << 40), number(1, 1 << 40)].concat();
    refuses(&model(&message(&[(5, &huge)])), "which no tensor can have");
    let far = message(&[(8, b"w"), (13, &entry_of("location", "d")), (13, &entry_of("offset", "-4"))]);
    refuses(&model(&message(&[(5, &far)])), "tensor `w`: external_data `offset` is `-4`");
    let mut nested = Vec::new();
    for _ in 0..40 {
        nested = message(&[(1, &node("If", "", &[], &[], &[message(&[(6, &nested)])]))]);
    }
    refuses(&model(&nested), "nested more than 32 deep");
}

#[test]
fn a_count_that_no_model_has_is_refused() {
    for (field, what) in [(1, "nodes"), (5, "tensors"), (11, "inputs"), (12, "outputs")] {
        refuses(&model(&message(&[(field, &[])]).repeat(MOST + 1)), &format!("more than 1048576 {what}"));
    }
    let keys = message(&[(14, &[])]).repeat(MOST + 1);
    refuses(&[model(&[]), keys].concat(), "more than 1048576 metadata keys");
}

#[test]
fn no_bytes_make_it_panic() {
    let graph = message(&[
        (1, &node("Gather", "", &["w", "ids"], &["x"], &[message(&[(5, &tensor("c", Some("d")))])])),
        (5, &tensor("w", None)),
        (11, &port_of("ids")),
    ]);
    let whole = model(&graph);
    for at in 0..whole.len() {
        let _ = Onnx::parse(&whole[..at]);
        for bit in 0..8 {
            let mut bytes = whole.clone();
            bytes[at] ^= 1 << bit;
            let _ = Onnx::parse(&bytes);
        }
    }
}
