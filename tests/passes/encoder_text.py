"""A small encoder in graph IR as a frontend hands it over: embedding, attention, gated feed-forward, mean pooling."""

ENCODER = """
builtin.module attributes {tw.dims = #tw.dim_space<["b: 0..5", "t: 1..9"]>} {
  graph.func() {sym_name="main", arg_names=["x","ids","mask"], result_names=["y","p"]} {
  ^bb(%x: !graph.tensor<["b","t",16], f32>, %ids: !graph.tensor<["b","t"],i64>, %mask: !graph.tensor<["b","t"],i64>):
    %table = graph.weight() {name="emb"} : !graph.tensor<[32,16],f32>
    %g = graph.gather(%table, %ids) : !graph.tensor<["b","t",16],f32>
    %h0 = graph.map(args=[%g,%x]) {fn="add"} : !graph.tensor<["b","t",16],f32>
    %lw = graph.weight() {name="lw"} : !graph.tensor<[16],f32>
    %h = graph.norm(%h0, weight=%lw, bias=%lw) {kind="layer", eps="1e-5"} : !graph.tensor<["b","t",16],f32>
    %wq = graph.weight() {name="wq"} : !graph.tensor<[16,16],f32>
    %bq = graph.weight() {name="bq"} : !graph.tensor<[16],f32>
    %wk = graph.weight() {name="wk"} : !graph.tensor<[16,16],f32>
    %q0 = graph.matmul(%h, %wq) {transpose_b=true} : !graph.tensor<["b","t",16],f32>
    %q1 = graph.map(args=[%q0,%bq]) {fn="add"} : !graph.tensor<["b","t",16],f32>
    %q2 = graph.reshape(%q1) {dims=["b","t",4,4]} : !graph.tensor<["b","t",4,4],f32>
    %q = graph.transpose(%q2) {permutation=[0,2,1,3]} : !graph.tensor<["b",4,"t",4],f32>
    %k0 = graph.matmul(%h, %wk) {transpose_b=true} : !graph.tensor<["b","t",16],f32>
    %k2 = graph.reshape(%k0) {dims=["b","t",4,4]} : !graph.tensor<["b","t",4,4],f32>
    %k = graph.transpose(%k2) {permutation=[0,2,1,3]} : !graph.tensor<["b",4,"t",4],f32>
    %z = graph.constant() {values=[0]} : !graph.tensor<[],i64>
    %valid = graph.map(args=[%mask,%z]) {fn="ne"} : !graph.tensor<["b","t"],i1>
    %a = graph.attention(%q,%k,%k,valid=%valid) {scale="0.5"} : !graph.tensor<["b",4,"t",4],f32>
    %at = graph.transpose(%a) {permutation=[0,2,1,3]} : !graph.tensor<["b","t",4,4],f32>
    %am = graph.reshape(%at) {dims=["b","t",16]} : !graph.tensor<["b","t",16],f32>
    %o0 = graph.matmul(%am, %wq) {transpose_b=true} : !graph.tensor<["b","t",16],f32>
    %o1 = graph.map(args=[%o0,%bq]) {fn="add"} : !graph.tensor<["b","t",16],f32>
    %o2 = graph.map(args=[%o1,%h]) {fn="add"} : !graph.tensor<["b","t",16],f32>
    %n2 = graph.norm(%o2, weight=%lw) {kind="rms", eps="1e-5"} : !graph.tensor<["b","t",16],f32>
    %g1 = graph.matmul(%n2, %wk) : !graph.tensor<["b","t",16],f32>
    %u1 = graph.matmul(%n2, %wq) : !graph.tensor<["b","t",16],f32>
    %s1 = graph.map(args=[%g1]) {fn="silu"} : !graph.tensor<["b","t",16],f32>
    %m1 = graph.map(args=[%s1,%u1]) {fn="mul"} : !graph.tensor<["b","t",16],f32>
    %d1 = graph.matmul(%m1, %wq) : !graph.tensor<["b","t",16],f32>
    %y = graph.map(args=[%d1,%o2]) {fn="add"} : !graph.tensor<["b","t",16],f32>
    %mf = graph.cast(%mask) {dtype="f32"} : !graph.tensor<["b","t"],f32>
    %mr = graph.reshape(%mf) {dims=["b","t",1]} : !graph.tensor<["b","t",1],f32>
    %mb = graph.broadcast(%mr) {dims=["b","t",16]} : !graph.tensor<["b","t",16],f32>
    %ym = graph.map(args=[%y,%mb]) {fn="mul"} : !graph.tensor<["b","t",16],f32>
    %num = graph.reduce(%ym) {fn="sum", axes=[1]} : !graph.tensor<["b",16],f32>
    %den = graph.reduce(%mb) {fn="sum", axes=[1]} : !graph.tensor<["b",16],f32>
    %eps = graph.constant() {values=["1e-9"]} : !graph.tensor<[],f32>
    %dc = graph.map(args=[%den,%eps]) {fn="max"} : !graph.tensor<["b",16],f32>
    %p0 = graph.map(args=[%num,%dc]) {fn="div"} : !graph.tensor<["b",16],f32>
    %sq = graph.map(args=[%p0,%p0]) {fn="mul"} : !graph.tensor<["b",16],f32>
    %ss = graph.reduce(%sq) {fn="sum", axes=[1], keepdims=true} : !graph.tensor<["b",1],f32>
    %rt = graph.map(args=[%ss]) {fn="sqrt"} : !graph.tensor<["b",1],f32>
    %rm = graph.map(args=[%rt,%eps]) {fn="max"} : !graph.tensor<["b",1],f32>
    %p = graph.map(args=[%p0,%rm]) {fn="div"} : !graph.tensor<["b",16],f32>
    graph.return(values=[%y, %p])
  }
}
"""
