"""The reader of HLO against hand-written programs."""

from vemd_jax.ahead import hlo

# An all-reduce of two tensors, started and awaited; an all-gather within groups
# of 2; a reduce-scatter over all 8 devices; a product in float32 within a
# fusion; a convolution with float32 result of bfloat16 operands.
PROGRAM = """\
HloModule jit_train_step, is_scheduled=true, entry_computation_layout={()->f32[]}

%add (x.1: f32[], y.1: f32[]) -> f32[] {
  %x.1 = f32[]{:T(128)} parameter(0)
  %y.1 = f32[]{:T(128)} parameter(1)
  ROOT %sum.1 = f32[]{:T(128)} add(%x.1, %y.1)
}

%fused_product (p.0: f32[8,16], p.1: bf16[16,4]) -> f32[8,4] {
  %p.0 = f32[8,16]{1,0:T(8,128)} parameter(0)
  %p.1 = bf16[16,4]{1,0:T(8,128)(2,1)} parameter(1)
  ROOT %dot.1 = f32[8,4]{1,0} dot(%p.0, %p.1), lhs_contracting_dims={1}, rhs_contracting_dims={0}, metadata={op_name="jit(train_step)/jvp(VEMD)/head/pooling/score/dot_general" source_file="a.py"}
}

%body (t: (s32[], f32[4])) -> (s32[], f32[4]) {
  %t = (s32[], f32[4]{0}) parameter(0)
  %i = s32[] get-tuple-element(%t), index=0
  %v = f32[4]{0} get-tuple-element(%t), index=1
  %moved = f32[4]{0} collective-permute(%v), channel_id=4, source_target_pairs={{0,1},{1,0}}
  ROOT %next = (s32[], f32[4]{0}) tuple(%i, %moved)
}

ENTRY %main.1 (a: f32[8,16], b: bf16[16,4], image: bf16[2,8,8,3], kernel: bf16[3,3,3,4]) -> f32[8,4] {
  %a = f32[8,16]{1,0:T(8,128)} parameter(0), metadata={op_name="state.params"}
  %b = bf16[16,4]{1,0:T(8,128)(2,1)} parameter(1)
  %image = bf16[2,8,8,3]{3,2,1,0} parameter(2)
  %kernel = bf16[3,3,3,4]{3,2,1,0} parameter(3)
  %start = (f32[100]{0:T(128)}, bf16[10,10]{1,0}) all-reduce-start(%a, /*index=1*/%b), channel_id=1, replica_groups=[1,8]<=[8], use_global_device_ids=true, to_apply=%add
  %done = (f32[100]{0:T(128)}, bf16[10,10]{1,0}) all-reduce-done(%start)
  %gather = (bf16[8,4]{1,0}, bf16[16,4]{1,0}) all-gather-start(%b), channel_id=2, replica_groups={{0,1},{2,3},{4,5},{6,7}}, dimensions={0}
  %gathered = bf16[16,4]{1,0} all-gather-done(%gather)
  %scatter = f32[1,16]{1,0} reduce-scatter(%a), channel_id=3, replica_groups={}, dimensions={0}, to_apply=%add
  %conv = f32[2,8,8,4]{3,2,1,0:T(8,128)S(1)} convolution(%image, %kernel), window={size=3x3 pad=1_1x1_1}, dim_labels=b01f_01io->b01f, metadata={op_name="jit(train_step)/transpose(jvp(VEMD))/VEMD._decode/body_decoder/trunk/conv_1/conv"}
  %loop = (s32[], f32[4]{0}) while(%start), condition=%add, body=%body
  ROOT %fusion = f32[8,4]{1,0} fusion(%a, %b), kind=kOutput, calls=%fused_product, metadata={op_name="jit(train_step)/jvp(VEMD)/head/pooling/score/dot_general"}
}
"""  # noqa: E501


def test_collectives_with_their_sizes_and_groups():
  found = hlo.Module(PROGRAM, devices=8).collectives()
  assert [(c.kind, c.size, c.devices) for c in found] == [
      ('collective-permute', 16, 8),
      ('all-reduce', 100 * 4 + 100 * 2, 8),
      ('all-gather', 16 * 4 * 2, 2),
      ('reduce-scatter', 16 * 4, 8),
  ]
  # Each device sends 1/8 of the sum around the ring 7 times, to reduce it and
  # to gather it; of a gathered array everything but what it receives last.
  assert [c.sent for c in found] == [16, 2 * 600 * 7 / 8, 128 / 2, 64 * 7]


def test_products_that_read_float32():
  module = hlo.Module(PROGRAM, devices=8)
  assert module.products() == 2
  assert [(i.name, i.op) for i in module.float32()] == [('dot.1', 'dot')]
  assert module.float32()[0].scope.endswith('pooling/score/dot_general')


def test_bytes_by_module():
  accessed = hlo.Module(PROGRAM, devices=8).accessed()
  assert accessed['head/pooling'] == 8 * 16 * 4 + 16 * 4 * 2 + 8 * 4 * 4
  # The result is in another memory, S(1).
  assert accessed['body_decoder/trunk'] == 2 * (2 * 8 * 8 * 3 + 3 * 3 * 3 * 4)
  assert list(accessed.values()) == sorted(accessed.values(), reverse=True)
  # Each collective's operands and results, without the part that only waits;
  # the start of the gather holds its operand, too.
  reduce = 8 * 16 * 4 + 16 * 4 * 2 + 600
  gather = 16 * 4 * 2 + 8 * 4 * 2 + 16 * 4 * 2
  scatter = 8 * 16 * 4 + 16 * 4
  assert accessed['other'] == reduce + gather + scatter + 32


def test_a_slice_reads_only_itself_and_a_copy_its_source_once():
  text = """
ENTRY %main (p: f32[512,512]) -> f32[128,512] {
  %p = f32[512,512]{1,0} parameter(0)
  %s = ((f32[512,512]{1,0}), f32[128,512]{1,0:T(8,128)S(1)}, s32[]{:S(2)}) slice-start(%p), slice={[0:128], [0:512]}
  %sd = f32[128,512]{1,0:T(8,128)S(1)} slice-done(%s)
  %c = (f32[512,512]{1,0:S(1)}, f32[512,512]{1,0}, u32[]{:S(2)}) copy-start(%p)
  %cd = f32[512,512]{1,0:S(1)} copy-done(%c)
  ROOT %r = f32[128,512]{1,0} slice(%p), slice={[0:128], [0:512]}
}
"""  # noqa: E501
  part, whole = 128 * 512 * 4, 512 * 512 * 4
  assert hlo.Module(text).accessed() == {'other': part + whole + 2 * part}


def test_a_program_without_collectives():
  module = hlo.Module('HloModule empty\n')
  assert module.collectives() == module.float32() == []
  assert module.accessed() == {}
