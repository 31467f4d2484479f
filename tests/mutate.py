"""Breaks the source one line at a time and asks that a test notices each: a test that cannot fail guards nothing.

`make mutate` runs it all; `make mutate ARGS=--list` says what there is, `ARGS="--only 7 12"` runs those two.

* The package and its tests are copied to a temporary folder, and only the copy is ever broken.
* First every selection must pass on the copy as it is. Then each breakage must make its selection fail.
* Errors, all with exit status 1: a breakage that survives; an old text that does not occur exactly once, because the
  source has changed; a test that is not there; a run that ends in any way but a failed test.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent
LIMIT = 900  # seconds a run may take; only one that hangs takes more
HUNG = 124  # the status then, as of timeout(1)


class Breakage(NamedTuple):
    """In chatloom/`file`, `old` becomes `new`; `tests`, a file or a test of tests/, must then fail."""

    file: str
    old: str
    new: str
    tests: str
    reason: str


# fmt: off
BREAKAGES = tuple(Breakage(*row) for row in (
    ("objectives/chosen.py", "exp_().mul_(-gradient[some, None])", "exp_().mul_(gradient[some, None])",
     "objectives/test_chosen.py::test_numbers_and_gradients", "the other tokens are pushed up too"),
    # --- the page ---
    ("server/markdown.py", '"html": False', '"html": True',
     "server/test_markdown.py", "the parser lets HTML through"),
    ("server/markdown.py", 'if (tag, name) == ("a", "href") and', "if False and",
     "server/test_markdown.py", "links without a scheme lead into this server"),
    ("server/page_state.py", "self.store.message(id, owner=person)", "self.store.message(id, owner=None)",
     "server/test_page.py::test_what_belongs_to_another_is_not_there", "other people's answers are read and judged"),
    ("server/conversations.py", "for each in ids:\n", "for each in ids[:1]:\n",
     "server/test_page.py::test_what_belongs_to_another_is_not_there", "others' answers are read by `also`"),
    ("server/running.py", "seed=sample_seed(seed, index)", "seed=seed",
     "server/test_page.py::test_one_stream_of_several_answers", "all answers to compare are one"),
    ("server/running.py", "await asyncio.gather(*(self.stop(id) for id in list(self._running)))", "return",
     "server/test_page.py::test_a_stopped_server_keeps_what_there_was", "what is under way is lost at the end"),
    ("server/running.py", "tokens=running.tokens,", "tokens=running.generation.completion.tokens,",
     "server/test_page.py::test_a_continued_answer_keeps_all_its_tokens", "the record has the last part alone"),
    ("server/interchange.py", "continued.add(parent)", "pass",
     "server/test_interchange.py", "a joined text is there twice"),
    ("feedback/imports.py", "        coming.check()\n", "",
     "server/test_interchange.py", "turns that do not alternate are stored"),
    # --- the server ---
    ("server/generation.py", "        self._stream.cancel()\n", "",
     "server/test_server_generation.py", "a client that has gone is computed on"),
    ("server/generation.py", "        self._rung = True\n", "",
     "server/test_server_generation.py::test_the_loop_is_called_once_a_step_however_many_streams", "a call for each"),
    ("server/answering.py", "replace(sampling, seed=sample_seed(sampling.seed, sample))", "sampling",
     "server/test_chat_completions.py", "n answers are one answer"),
    ("server/answering.py", "        give_up(begun)\n        raise", "        raise",
     "server/test_server_generation.py::test_n_answers_are_begun_all_or_none", "what had begun goes on for nobody"),
    ("server/served.py", "adapter=adapter, parent=name", "parent=name",
     "server/test_server_generation.py", "an adapter answers as its base"),
    ("server/completions.py", "behind = slice(prompt.num_added, None)", "behind = slice(0, None)",
     "server/test_completions.py", "the token before a text is scored as its own"),
    ("server/ending.py", "            if not left or", "            if True or",
     "server/test_ending.py", "running answers are cut off at once"),
    ("server/observe.py", "getattr(route, \"path\", UNKNOWN)", "scope[\"path\"]",
     "server/test_observe.py", "what a client made up is in the log"),
    ("server/errors.py", "value.encode(\"utf-8\", \"replace\").decode()", "value",
     "server/test_errors.py", "an error that cannot be written is a 500"),
    ("engine/runner.py", "self.space += f\" scored {self.order}\".encode()", "pass",
     "engine/test_prompt_logprobs.py", "a remembered prompt is not scored"),
    # --- who may come in ---
    ("server/guard.py", "if not door.on_loopback and not accounts.demanded():", "if False:",
     "server/test_server_guard.py", "a network gets in without a key"),
    ("server/guard.py", "if local and not self._accounts.demanded():", "if local:",
     "server/test_server_guard.py", "users and keys make no difference on loopback"),
    ("server/guard.py", "if not self._door.is_called(match[\"name\"]):", "if False:",
     "server/test_server_guard.py", "DNS rebinding"),
    ("server/guard.py", "foreign or site in", "site in",
     "server/test_server_guard.py", "another site's Origin is not looked at"),
    ("server/guard.py", "(token is not None or path.startswith(\"/api/\"))", "path.startswith(\"/api/\")",
     "server/test_server_guard.py", "a session's cookie writes to /v1 without the page's token"),
    ("server/guard.py", "if scheme.lower() == \"bearer\" else None", "if scheme else None",
     "server/test_server_guard.py", "Basic authorization exempts from CSRF"),
    ("server/guard.py", "and not any(name in headers for name in _PROXIED)", "",
     "server/test_server_guard.py", "whoever comes through a proxy is the local person"),
    ("server/guard.py", "HttpOnly; SameSite=Strict{secure}", "SameSite=Strict{secure}",
     "server/test_sign_in.py", "scripts read the session"),
    ("server/accounts.py", "if row is not None and hmac.compare_digest(row.digest, digest) else None",
     "if row is not None else None", "server/test_accounts.py", "the first digits of a key are enough"),
    ("server/accounts.py", " or row.expires <= self._clock()", "",
     "server/test_accounts.py", "sessions do not end"),
    ("server/accounts.py", "connection.execute(delete(sessions).where(sessions.c.holder == name))", "pass",
     "server/test_accounts.py", "a new password leaves a thief signed in"),
    ("server/passwords.py", "hmac.compare_digest(given, _bytes(digest))", "len(given) == len(_bytes(digest))",
     "server/test_passwords.py", "any password is right"),
    ("server/sign_in.py", "throttle.tried(name, address)", "pass",
     "server/test_sign_in.py", "passwords are guessed freely"),
    ("server/key_file.py", "            if state != self._seen:", "            if False:",
     "server/test_key_file.py", "a key that was deleted stays"),
    ("server/limits.py", "            rule.bucket.take(tokens, self._clock())", "            pass",
     "server/test_server_limits.py", "tokens are not counted"),
    ("server/limits.py", "            self._use.running -= 1", "            pass",
     "server/test_server_limits.py", "a request that has ended keeps its place"),
    ("server/bodies.py", "            if self._count > self._most:", "            if False:",
     "server/test_bodies.py", "a body without a declared length has no limit"),
    ("server/bodies.py", "asyncio.timeout_at(self._deadline)", "asyncio.timeout(self._seconds)",
     "server/test_bodies.py", "a byte now and then keeps a connection for ever"),
    # --- the model ---
    ("nn/cache.py", "is_causal=mask is None", "is_causal=False",
     "parity/test_transformers_models.py::test_cached_equals_full", "a token sees what comes after it"),
    ("nn/documents.py", "seen = own[:, :, None] == own[:, None, :]", "seen = own[:, :, None] >= own[:, None, :]",
     "evals/test_likelihood.py::test_packed_together_is_each_alone_by_the_slow_oracle",
     "documents of a row see each other"),
    ("nn/documents.py", "starts[:, 1:] = documents[:, 1:] != documents[:, :-1]", "starts[:, 1:] = False",
     "parity/test_transformers_models.py::test_padded_rows_match", "positions go on in the next document"),
    ("nn/documents.py", "        seen |= _continued(documents)", "        pass",
     "nn/test_documents.py::test_scores_and_gradients_are_those_of_each_answer_alone", "answers see no prompt"),
    ("nn/documents.py", "places = places + _continued(documents).sum(-1)", "places = places + 0",
     "nn/test_documents.py::test_scores_and_gradients_are_those_of_each_answer_alone", "answers begin at position 0"),
    ("data/pack.py", "best_fit([len(sample) - common for sample in family], row_length - common)",
     "[range(len(family))]",
     "nn/test_documents.py::test_every_sample_can_be_read_back", "a family that fits no row is not parted"),
    ("nn/cache.py", "key.repeat_interleave(repeats, dim=1)", "key.repeat(1, repeats, 1, 1)",
     "parity/test_transformers_models.py::test_logits_loss_and_gradients", "grouped queries meet another group's keys"),
    ("nn/paged.py", "seen = slots <= positions[:, None]", "seen = slots < positions[:, None]",
     "engine/test_engine.py::test_greedy_is_a_loop_of_full_forwards", "a decoded token does not see itself"),
    ("nn/paged.py", "back[self.where] =", "back[self.where.flip(0)] =",
     "nn/test_paged.py::test_decoding_sees_what_training_sees", "a block's values get another block's shares"),
    ("nn/quantised_cache.py", "amax(-1).float() / _MOST", "amax(-1).float() / (_MOST / 2)",
     "nn/test_quantised_cache.py::test_rounding_is_off_by_half_a_step_at_most", "the steps are twice too coarse"),
    ("nn/quantised_cache.py", "key, value = self.write(", "self.write(",
     "nn/test_quantised_cache.py::test_what_is_seen_is_rounded_whatever_the_pieces",
     "a prompt sees its own keys unrounded, and its answer rounded ones"),
    ("engine/capacity.py", "if kv_dtype is None else bytes_of_a_head(width)", "if kv_dtype is None else width",
     "engine/test_quantised_keys.py::test_bytes_of_a_token_are_those_that_are_allocated", "scales take no room"),
    ("nn/sinks.py", "rotary.turns(self._places.clamp(max=last))", "rotary.turns(self._places)",
     "nn/test_sinks.py::test_it_is_the_papers_cache", "sinks are as far away as they are in the text"),
    ("nn/sinks.py", "< self._kept.window) | self._is_sink)", "< self._kept.window))",
     "engine/test_windows.py::test_four_contexts_of_text_are_the_papers_rule", "sinks are not seen"),
    ("nn/sinks.py", "max(0, place - self.window + 1) // size", "max(0, place - self.window + 1 + size) // size",
     "engine/test_windows.py::test_four_contexts_of_text_are_the_papers_rule", "a block that is seen is given back"),
    ("engine/scheduler.py", "place >= first or place < sinks", "place >= first",
     "engine/test_windows.py::test_a_conversation_goes_on_where_it_was", "what is found again has lost its sinks"),
    ("engine/scheduler.py", "                self.blocks.drop(sequence.blocks[place])\n", "                pass\n",
     "engine/test_windows.py::test_blocks_stay_flat_and_come_back", "blocks behind the window are never given back"),
    ("nn/positions.py", "[-magnitude, magnitude]", "[magnitude, -magnitude]",
     "nn/test_written_out_gradients.py::test_a_rotation_keeps_lengths_and_turns_by_the_angle",
     "rotary embedding turns backwards"),
    ("nn/positions.py", "_turn(gradient, cosines, -sines,", "_turn(gradient, cosines, sines,",
     "nn/test_written_out_gradients.py::test_gradient_of_a_rotation", "its gradient is not turned back"),
    ("nn/norms.py", ".add_(epsilon)", ".add_(0.0)",
     "nn/test_written_out_gradients.py::test_rms_norm_is_that_of_torch", "RMSNorm without its epsilon"),
    ("nn/norms.py", ".div_(x.shape[-1])", "",
     "nn/test_written_out_gradients.py::test_rms_norm_is_that_of_torch", "RMSNorm by the sum, not the mean"),

    ("nn/cache.py", "self._far(query) < rule.window", "self._far(query) <= rule.window",
     "nn/test_rules.py::test_attention_and_its_gradients", "the window is one token too wide"),
    ("nn/cache.py", "-slopes * self._far(query)", "slopes * self._far(query)",
     "nn/test_rules.py::test_attention_and_its_gradients", "ALiBi prefers what is far away"),
    ("nn/experts.py", "weights.flatten()[order, None]", "weights.flatten()[:, None]",
     "nn/test_experts.py::test_each_token_goes_to_its_experts", "an expert's answer gets another's weight"),
    ("nn/experts.py", "num_experts * (fraction", "(fraction",
     "nn/test_experts.py::test_load_balancing_by_hand", "the balancing loss shrinks with the experts"),
    ("models/longer.py", "factor ** (turned / (turned - 2))", "factor",
     "models/test_longer.py::test_ntk_slows_the_slowest_pair_by_the_factor_and_leaves_the_fastest",
     "NTK's base grows too little for the slowest pair"),
    ("models/longer.py", 'original = trained if kind == "yarn" else None', "original = None",
     "models/test_longer.py::test_angles_are_those_of_transformers", "yarn takes the new length for the trained one"),
    ("models/decoder.py", "positions + self.position_offset", "positions",
     "parity/test_transformers_models.py::test_logits_loss_and_gradients", "OPT reads its neighbour's positions"),
    ("models/decoder.py", "layer.routing[documents != 0]", "layer.routing.flatten(0, -2)",
     "models/test_families.py::test_padding_is_not_routed_for_the_loss", "padding is balanced too"),

    # --- language modelling and the update ---
    ("data/pack.py", "np.where(counted[1:], flat[1:]", "np.where(counted[:-1], flat[1:]",
     "data/test_pack.py::test_pack_by_hand", "the loss mask is not shifted with the targets"),
    ("data/pack.py", "counted[begins] = False", "counted[begins] |= False",
     "data/test_pack.py::test_pack_by_hand", "a document's last token predicts the next document"),
    ("train/trainer.py", "loss.total.backward()", "(loss.total / loss.weight).backward()",
     "equivalence/test_accumulation.py::test_loss_gradient_and_update_are_the_same",
     "a mean of means over micro-batches"),
    ("train/parallel.py", "(gradients, clipped / weight)", "(gradients, clipped)",
     "train/test_parallel.py::test_divide_then_clip", "the gradient is not divided by what counted"),
    ("train/parallel.py", "clip_norm / (norm + 1e-6)", "clip_norm / (norm * weight + 1e-6)",
     "train/test_parallel.py::test_divide_then_clip", "clipped before the division"),
    ("train/averaging.py", "weights, 1 - self.decay", "weights, self.decay",
     "train/test_averaging.py::test_by_hand", "the average takes the new weights' share for the old"),
    ("train/schedules.py", "(step + 1) / (warmup_steps + 1)", "step / warmup_steps",
     "train/test_schedules.py", "the first update has a learning rate of 0"),
    ("train/schedules.py", "1 - math.sqrt(progress)", "1 - progress",
     "train/test_schedules.py", "the cooldown is linear"),
    ("train/optimizers.py", "averages, gradients, 1 - momentum)", "averages, gradients, momentum)",
     "train/test_optimizers.py::test_muon_against_a_slow_version", "Muon's momentum and gradient change places"),
    ("train/optimizers.py", "rows / columns", "columns / rows",
     "train/test_optimizers.py::test_muon_against_a_slow_version", "Muon scales wide matrices, not tall ones"),
    ("train/optimizers.py", 'others, "weight_decay": 0.0', 'others, "weight_decay": config.weight_decay',
     "train/test_optimizers.py::test_only_matrices_decay", "norms and biases decay"),

    # --- resuming ---
    ("data/loader.py", "self._epoch, self._step = epoch, step", "self._epoch, self._step = epoch, 0",
     "data/test_loader.py::test_resume_is_exact", "a resumed loader begins its epoch again"),
    ("train/optimizers.py", 'self.num_updates = int(state["num_updates"])', "self.num_updates = 0",
     "train/test_optimizers.py::test_state_round_trip", "a resumed optimizer warms its momentum up again"),
    ("train/trainer.py", 'self.optimizer.load_state_dict(state["optimizer"])', "pass",
     "equivalence/test_resume_training.py::test_ten_steps_are_five_and_five[adamw]",
     "a resumed optimizer has no moments"),
    ("train/trainer.py", 'runtime.restore_random_state(tree["random"][runtime.rank()])', "pass",
     "equivalence/test_resume_training.py::test_ten_steps_are_five_and_five[adamw]",
     "torch's generator is not resumed"),
    ("rl/loop.py", 'self.kl.beta = float(state["beta"])', "pass",
     "rl/test_ppo_loop.py::test_resumed_is_uninterrupted_bit_for_bit", "the KL coefficient is not resumed"),

    # --- the reward model ---
    ("objectives/reward.py", "(losses * share).sum()", "losses.sum()",
     "objectives/test_reward_objective.py", "pairs are not divided by the pairs of their prompt"),
    ("objectives/reward.py", "ranks[:, None] < ranks[None, :]", "ranks[:, None] <= ranks[None, :]",
     "objectives/test_reward_objective.py", "ties count as pairs"),
    ("objectives/reward.py", "-float(scores.mean()) / deviation", "-float(scores.mean())",
     "objectives/test_reward_objective.py", "the bias is not scaled as the gain is"),
    ("checkpoint/saving.py", '"reward_gain": model.gain, "reward_bias": model.bias',
     '"reward_gain": 1.0, "reward_bias": 0.0',
     "parity/test_transformers_models.py::test_reward_model_is_a_sequence_classifier", "gain and bias are not saved"),
    ("data/pack.py", "spans[:, 1] + spans[:, 2] - 1", "spans[:, 1] + spans[:, 2] - 2",
     "data/test_pack.py::test_pack_by_hand", "the score is read before the last token"),

    # --- PPO ---
    ("objectives/ppo.py", "loss = torch.maximum(free, clipped)", "loss = torch.minimum(free, clipped)",
     "objectives/test_ppo_objective.py::test_clipped_policy_loss_by_hand", "the ratio is clipped on the wrong side"),
    ("objectives/ppo.py", "return torch.maximum(free, clipped)", "return torch.minimum(free, clipped)",
     "objectives/test_ppo_objective.py::test_clipped_value_loss_by_hand", "the better of the value errors counts"),
    ("objectives/ppo.py", "some_chosen, temperature=temperature, entropy", "some_chosen, temperature=1.0, entropy",
     "objectives/test_ppo_objective.py::test_action_logprobs_equal_the_whole_softmax",
     "log-probabilities are not at the sampler's temperature"),
    ("objectives/ppo.py", 'batch["ptx_scale"] * language.total', "language.total",
     "objectives/test_ppo_objective.py::test_ptx_adds_the_coefficient_times_the_language_model_mean_to_the_full_actor_mean",
     "the objective does not scale the ptx loss"),
    ("rl/loop.py", "ptx_coefficient * num_actions / max(1, num_ptx_tokens)", "ptx_coefficient",
     "rl/test_ppo_loop.py::test_ptx_is_a_mean_over_its_own_tokens",
     "the loop does not scale the ptx loss by its tokens"),
    ("rl/advantages.py", "(gamma * lambda_) ** ahead", "(gamma * lambda_**2) ** ahead",
     "rl/test_advantages.py::test_three_tokens_by_hand", "advantages decay too fast"),
    ("rl/advantages.py", "rewards + gamma * after - values", "rewards + gamma * values - after",
     "rl/test_advantages.py::test_three_tokens_by_hand", "the value before and after change places"),
    ("rl/advantages.py", "if not shift_mean:", "if shift_mean:",
     "rl/test_details.py::test_15_whitening_keeps_the_mean_of_rewards_and_shifts_that_of_advantages",
     "whitened rewards lose their mean"),
    ("rl/advantages.py", "sums[2] / count - mean.square()", "(sums[2] - count * mean.square()) / (count - 1)",
     "rl/test_details.py::test_15_whitening_keeps_the_mean_of_rewards_and_shifts_that_of_advantages",
     "variance of the sample, not the population"),
    ("rl/rewards.py", "- beta * penalty", "+ beta * penalty",
     "rl/test_details.py::test_14_kl_a_token_and_the_score_at_the_end", "divergence from the reference is rewarded"),
    ("rl/rewards.py", "== lengths[:, None] - 1", "== mask.shape[1] - 1",
     "rl/test_details.py::test_06_the_score_lands_on_the_last_token", "the score lands on padding"),
    ("rl/experience.py", "torch.full_like(scores, value)", "scores",
     "rl/test_details.py::test_12_a_response_without_a_stop", "a response without a stop keeps its score"),
    ("rl/kl.py", "kl / self.target - 1.0", "1.0 - kl / self.target",
     "rl/test_details.py::test_17_adaptive_kl", "the penalty falls when KL is too large"),

    # --- generation ---
    ("engine/sampling.py", "(before < share * within_k)", "(cumulative < share * within_k)",
     "engine/test_sampling.py::test_top_p_keeps_the_fewest_that_reach_it", "top-p drops the token that reaches it"),
    ("engine/sampling.py", "- largest - total.log()", "- largest - cumulative[:, -1:].log()",
     "engine/test_sampling.py::test_top_k_renormalises_the_draw_but_not_the_log_probability",
     "log-probabilities are of what top-k left"),
    ("engine/native.cpp", "starts[group] = (bits == 8 ? -128 : -8) * sum_of_codes;", "starts[group] = 0;",
     "engine/test_quantised.py::test_compiled_products_give_the_numbers_that_are_written_out", "codes keep their zero"),
    ("engine/native.cpp", "const float most = largest(size);", "const float most = highest((F)size);",
     "engine/test_quantised.py::test_what_is_not_a_number_stays_none", "rounding hides damaged weights"),
    ("engine/native.cpp", "allowed[t] = (where <= position[r]) & (position[r] - where < window);",
     "allowed[t] = where <= position[r];",
     "engine/test_fused.py::test_it_computes_what_the_modules_compute", "the window is forgotten"),
    ("engine/native.cpp", "if (before > aim) token = last;", "if (before >= 0) token = last;",
     "engine/test_sampling.py::test_compiled_draws_are_torchs", "the first token is always drawn"),
    ("engine/native.cpp", "F sums = total[r] * factor[r];", "F sums = total[r];",
     "engine/test_fused.py::test_it_computes_what_the_modules_compute", "shares of another greatest score"),
    ("engine/native.cpp", "store(group + tile % 2 * LANES, gate", "store(group, gate",
     "engine/test_fused.py::test_it_computes_what_the_modules_compute", "a pair writes over the one before it"),
    ("engine/native.cpp", "room.alone = (int)room.tiles.size() == step.chunks * net.groups;", "room.alone = true;",
     "engine/test_fused.py", "attention reads keys that another tile has still to place"),
    ("engine/fused.py", "kept_values[:, own, :, :, slot // 2, :, slot % 2]",
     "kept_values[:, own, :, :, slot // 2, :, 1 - slot % 2]",
     "engine/test_fused.py::test_virtual_tokens_are_laid_out", "virtual values change places"),
    ("engine/quantised.py", "torch.where(choose, theirs, own)", "torch.where(choose, own, theirs)",
     "engine/test_quantised.py::test_fitted_groups_are_nearer_than_their_range", "the worse of two fits is kept"),
    ("engine/lowered.py", "now, self.filled = self.now(), None", "now = self.filled = self.now()",
     "engine/test_lowered.py::test_a_refresh_that_is_interrupted_is_done_again", "half of a matrix is taken for whole"),
    ("engine/sampling.py", "torch.where(some, others[1], logprobs)", "others[1]",
     "engine/test_sampling.py::test_a_row_that_draws_from_all_does_so_alike_in_any_company",
     "a neighbour decides how"),
    ("engine/lowered.py", "if made.filled != made.now():", "if made.filled is None:",
     "engine/test_quantised.py::test_an_update_of_any_joined_part_reaches_the_copy", "copies stay what they were"),
    ("stages/memory.py", "+ copies(config, dtype if dtype in runtime.QUANTISED else own),", "+ 0,",
     "stages/test_memory.py::test_copies_that_are_decoded_from_are_counted", "quantised copies take no memory"),
    ("engine/settle.py", "derive_seed(seed, index) for index", "seed for index",
     "engine/test_engine.py::test_one_seed_for_a_list_is_derived_for_each_request", "all requests draw alike"),
    ("engine/runner.py", "row.uniforms[len(row.logprobs) + behind]", "row.uniforms[behind]",
     "engine/test_crowds.py::test_each_token_has_a_random_number_of_its_own", "every token is drawn with one number"),
    ("engine/runner.py", "for pairs in (plan.moves, plan.copies):", "for pairs in (plan.copies,):",
     "engine/test_crowds.py::test_a_crowd_of_requests_is_each_alone", "a block that moved is read before it arrives"),
    ("engine/engine.py", "if self._runner is not None and now == self._version:", "if self._runner is not None:",
     "engine/test_crowds.py::test_changed_weights_are_never_mixed_with_remembered_keys", "old keys meet new weights"),
    ("engine/engine.py", "self._lowered.refresh()", "self._lowered._copies[0].filled or self._lowered.refresh()",
     "engine/test_lowered.py::test_an_engine_sees_updates_and_adapters_that_come_later", "rollouts of an old policy"),
    ("train/optimizers.py", "            increment_version(parameter)", "            pass",
     "engine/test_lowered.py::test_a_training_step_reaches_the_next_answer", "rollouts of the weights before a step"),
    ("engine/lowered.py", "source is self.source and _structure(source) == self._structure", "source is self.source",
     "engine/test_lowered.py::test_an_engine_sees_updates_and_adapters_that_come_later", "an adapter is overlooked"),
    ("engine/lowered.py", ", *model.parameters(), *model.buffers())]", ")]",
     "engine/test_lowered.py::test_tensors_that_are_exchanged_are_the_twins_too", "the old embedding is read"),
    ("adapters/attach.py", "or path in measured", "",
     "adapters/test_sharing.py::test_what_is_frozen_may_be_held_in_the_type_of_the_products", "rounded lengths"),
    ("engine/scheduler.py", "if self._marked(sequence, start) and sequence.mark <= known:", "if False:",
     "engine/test_scheduler.py::test_a_common_beginning_that_is_marked_is_computed_once", "it is computed by all"),
    ("engine/settle.py", "row.mark = mark", "row.mark = 0",
     "engine/test_engine.py::test_what_prompts_begin_with_alike_is_computed_once", "it is computed by all"),
    ("engine/scheduler.py", "and sequence.mark <= known:", "and True:",
     "engine/test_scheduler.py::test_every_request_ends_and_no_block_is_lost", "what is not computed is found"),
    ("engine/blocks.py", "digest_size=16, key=parent", "digest_size=16",
     "engine/test_blocks.py::test_what_is_found_is_what_was_written", "a block is found after another beginning"),
    ("engine/scheduler.py", "self._preempt(running[-1])", "self._preempt(running[0])",
     "engine/test_scheduler.py::test_the_oldest_is_never_stopped", "the oldest gives way"),
    ("engine/structured.py", "0 if self._parser.is_accepting() else -np.inf", "0",
     "engine/test_structured.py::test_a_stop_token_comes_exactly_where_the_grammar_may_end",
     "an answer may end in the middle of its grammar"),
    ("engine/structured.py", "found[self._never] = -np.inf", "pass",
     "engine/test_structured.py::test_a_stop_token_comes_exactly_where_the_grammar_may_end",
     "the library's own end of text may come"),
    ("engine/structured.py", "[:, None] >> np.arange(8)", "[:, None] << np.arange(8)",
     "engine/test_structured.py::test_a_regular_expression", "other tokens may come"),
    ("engine/sampling.py", "(torch.float32, copy=True)", "(torch.float32)",
     "engine/test_structured.py::test_log_probabilities_stay_the_models_own",
     "log-probabilities are those of the grammar"),
    ("engine/structured.py", "fork = self.fork() if fork is self else fork", "fork = fork",
     "engine/test_speculative.py::test_guesses_within_a_grammar_change_no_answer", "a wrong guess moves the parser"),
    ("engine/structured.py", "found.update(enumerate(matcher.biases(own), place))", "found[place] = matcher.bias()",
     "engine/test_speculative.py::test_guesses_within_a_grammar_change_no_answer",
     "what follows a guess is of no grammar"),
    ("engine/runner.py", "    if row.num_missing > 1:\n", "    if True:\n",
     "engine/test_speculative.py::test_a_guess_attends_as_a_token_without_guesses",
     "guesses attend as prompts do, which rounds otherwise"),
    ("engine/speculative.py", "row.drafted = row.matcher.forced(count)", "pass",
     "engine/test_speculative.py::test_what_a_grammar_forces_is_guessed", "what a grammar forces is computed slowly"),
    ("engine/structured.py", "return taken and self._parser.is_stopped()", "return False",
     "engine/test_structured.py::test_what_is_complete_has_ended_though_it_was_the_last_token",
     "what is complete goes on"),
    ("engine/structured.py", "self._compiled[grammar].deep_copy()", "self._compiled[grammar]",
     "engine/test_structured.py::test_samples_streams_and_threads_have_parsers_of_their_own",
     "requests share one parser"),
    ("engine/structured.py", "before[lazy]:", "before:",
     "engine/test_structured.py::test_text_or_calls_or_text_and_then_calls", "who begins a call may say anything"),
    ("chat/calls.py", "self._escaped = character ==", "self._escaped = False and character ==",
     "chat/test_calls.py::test_what_is_written_is_read_however_it_is_cut", "a quote within arguments ends them"),
    ("chat/tools.py", "if asked.count(_DESCRIPTION) < len(tools) or _RESULT not in gone_on:", "if False:",
     "chat/test_chat_tools.py::test_what_a_template_knows_is_seen_by_what_it_writes", "a template is not looked at"),
    ("chat/calls.py", "if any(each.startswith(self._own) for each in self._made[: piece.call]):", "if False:",
     "chat/test_calls.py::test_a_call_that_was_made_already_ends_the_answer", "a call that comes again is told"),
    ("engine/grammar.py", 'found["additionalProperties"] = False', "pass",
     "engine/test_structured.py::test_arguments_that_nobody_named_are_not_made", "arguments are made up"),
    ("server/tools.py", "return \"required\", [_known(", "return \"auto\", [_known(",
     "server/test_tools.py::test_one_tool_of_several_is_called", "a tool that must be called may be"),
    ("server/responses.py", "\"completed\" if self.reason == \"stop\" else \"incomplete\"", "\"completed\"",
     "server/test_responses.py::test_an_answer_cut_short_is_incomplete", "half an answer is complete"),
    ("chat/render.py", "self._refuse_special(f\"message {index}\", json.dumps(", "(f\"message {index}\", json.dumps(",
     "chat/test_chat_tools.py::test_nothing_that_is_called_or_described_forges_a_turn", "a call forges a turn"),
    ("engine/sampling.py", "logits[place] += bias.to(logits.device)", "logits[place] -= bias.to(logits.device)",
     "engine/test_structured.py::test_a_regular_expression", "what may come may not"),
    ("engine/runner.py", "right = guess is None or (right and row.tokens[-1] == guess)", "right = True",
     "engine/test_speculative.py::test_the_distribution_is_the_models", "wrong guesses are kept"),
    ("engine/runner.py", "row.uniforms[len(row.logprobs) + behind]", "row.uniforms[len(row.logprobs)]",
     "engine/test_speculative.py::test_the_answer_is_that_of_plain_decoding", "guesses share one random number"),
    ("engine/speculative.py", "own.uniforms = row.uniforms[len(row.logprobs) :]", "pass",
     "engine/test_speculative.py::test_right_guesses_save_steps_and_a_twin_guesses_right",
     "a draft model draws with numbers of its own"),
    ("engine/engine.py", "            atexit.register(self.stop)  #", "            #",
     "engine/test_crowds.py::test_a_program_may_end_while_the_engine_works", "the worker is cut off within a product"),
    ("engine/language_model.py", "    if own != other:", "    if False:",
     "engine/test_language_model.py::test_a_draft_of_another_vocabulary_is_refused_before_weights_are_read",
     "a draft model of other tokens is opened"),
    ("engine/language_model.py", "(*stop_tokens, *more.get(\"stop_tokens\", ()))", "stop_tokens",
     "engine/test_language_model.py::test_any_sampling_option_reaches_the_engine_and_no_other_is_accepted",
     "stop tokens of the caller are ignored"),
    ("engine/language_model.py", "autocast=autocast, drafter=drafter, **kept", "autocast=autocast, **kept",
     "engine/test_language_model.py::test_a_draft_changes_no_answer", "a draft is opened and not used"),
    ("stages/chat.py", "    config.answer.grammar()  #", "    #",
     "stages/test_chat.py::test_a_missing_package_is_named_before_a_model_is_opened",
     "a missing package is found out when the model is open"),
    ("engine/speculative.py", "if num_waiting or len(rows) > drafter.max_rows:", "if False:",
     "engine/test_speculative.py::test_in_company_there_are_no_guesses", "guesses where they do not pay"),
    ("engine/beams.py", "key=lambda beam: -beam.total", "key=lambda beam: -beam.logprobs[-1]",
     "engine/test_beams.py::test_it_is_a_search_by_full_forwards", "beams are ranked by their last token"),
    ("engine/beams.py", "space=self.root.space", "space=str(beam.total).encode()",
     "engine/test_beams.py::test_beams_share_blocks", "beams share nothing"),
    ("engine/beams.py", "length = self.limit if self.params", "length = 1 if self.params",
     "engine/test_beams.py::test_as_wide_as_the_tree_it_is_the_best_of_all_answers", "a search ends too early"),
    ("engine/settle.py", "space=space if own is None else own.space + space", "space=space",
     "engine/test_multi_lora.py::test_keys_of_one_adapter_are_not_read_by_another",
     "adapters share keys and values"),
    ("engine/multi_lora.py", "            first = end\n", "            first = 0\n",
     "engine/test_multi_lora.py::test_a_crowd_of_all_kinds", "a row gets its neighbours' adapters too"),
    ("engine/multi_lora.py", "up[start : start + update.A.shape[0], own]", "up[: update.A.shape[0], own]",
     "engine/test_multi_lora.py::test_over_the_twins_that_decoding_reads",
     "layers of one matrix all have the first one's A"),
    ("engine/multi_lora.py", "output if self.bias is None else output - self.bias", "output",
     "engine/test_multi_lora.py::test_a_row_in_a_mixed_batch_is_that_of_a_model_with_its_adapter",
     "a named DoRA stretches the bias"),
    ("engine/multi_lora.py", "self.find(name).name", "name",
     "engine/test_multi_lora.py::test_removed_and_replaced", "to remove what is not there is a KeyError"),
    ("engine/lowered.py", 'first += len(part.get_parameter("weight"))', "first += 0",
     "engine/test_multi_lora.py::test_over_the_twins_that_decoding_reads", "the key's update goes to the query"),
    ("engine/engine.py", "version(self.model), self._adapters.version()", "version(self.model)",
     "engine/test_multi_lora.py::test_an_adapter_that_is_trained_reaches_the_next_answer",
     "a named adapter stays what it was"),
    ("engine/speculative.py", "grammar=None, adapter=None)", "grammar=None)",
     "engine/test_multi_lora.py::test_samples_beams_and_guesses", "the draft model is asked for another's adapter"),
    ("engine/beams.py", "adapter=self.root.adapter", "adapter=None",
     "engine/test_multi_lora.py::test_samples_beams_and_guesses", "beams lose their adapter"),
    ("engine/language_model.py", "ChatTemplate.load(folder) or base.template", "base.template",
     "engine/test_multi_lora.py::test_an_adapter_is_talked_to_by_its_own_template",
     "an adapter is asked in another's words"),
    ("engine/text.py", "return text[: min(found)]", "return text",
     "engine/test_text.py::test_stop_string_across_tokens_is_never_shown", "the stop string is shown"),
    ("engine/text.py", "keep = max(_overlap(text, stop) for stop in self._stop)", "keep = 0",
     "engine/test_text.py::test_stop_string_across_tokens_is_never_shown", "a stop string's beginning is shown"),

    # --- feedback ---
    ("feedback/database.py", '"synchronous=FULL"', '"synchronous=NORMAL"',
     "feedback/test_database.py::test_sqlite_waits_for_the_disk", "a power cut loses rows that were acknowledged"),
    ("feedback/database.py", 'connection.execute(text("VACUUM"))', "pass",
     "feedback/test_database.py::test_rows_that_moved_leave_no_copies", "copies stay in unused space"),
    ("feedback/database.py", "            if traces:", "            if False:",
     "feedback/test_database.py::test_a_kill_before_the_traces_are_gone_is_made_good_by_the_next_opening",
     "traces that a kill left are never erased"),
    ("feedback/migrations.py", "if version > VERSION:", "if version > VERSION + 1:",
     "feedback/test_migrations.py::test_a_newer_version_is_refused_and_not_touched", "a newer database is written to"),
    ("feedback/conversations.py", "owner not in (None, row.owner)", "False",
     "feedback/test_conversations.py::test_everybody_sees_their_own", "one user reads and deletes another's"),
    ("feedback/judgements.py", "where(table.c.rater == rater, *where)", "where(*where)",
     "feedback/test_judgements.py::test_the_newest_judgement_of_a_rater_counts", "raters replace each other's"),
    ("feedback/judgements.py", "wanted.append(table.c.consent == consent)", "pass",
     "feedback/test_judgements.py::test_each_kind_comes_back_with_its_prompt_and_answers", "consent is not asked"),
    ("feedback/consensus.py", "return Answer(message.content, not cut)", "return Answer(message.content)",
     "feedback/test_consensus.py::test_an_answer_that_was_cut_is_not_the_one_that_ended", "one that was cut ended"),
    ("feedback/consensus.py", "means = [sum(column) for column in zip(*places)]", "means = list(places[0])",
     "feedback/test_consensus.py::test_a_majority_of_pairs_counts", "the first rater decides"),
    ("feedback/agreement.py", "/ (size - 1)\n    return", "/ size\n    return",
     "feedback/test_agreement.py", "the expected disagreement is of draws with replacement"),
    ("feedback/scrub.py", "shown = _shown(text)", "shown = text",
     "feedback/test_scrub.py::test_what_is_personal_goes", "nothing is found beside a Chinese letter"),
    # --- conversations ---
    ("chat/render.py", "return len(before), match.end()", "return len(before), match.start()",
     "chat/test_render.py::test_the_mask_counts_replies_and_their_ends_and_nothing_else",
     "the end of turn is not in the loss"),
    ("tokenizers/bpe.py", "self._plain.encode_special_tokens = True", "self._plain.encode_special_tokens = False",
     "chat/test_render.py::test_golden", "special tokens in what a user says are parsed"),

    # --- models of others ---
    ("gguf/layouts.py", "tensor.reshape(heads, 2, -1, *", "tensor.reshape(heads, -1, 2, *",
     "gguf/test_reading.py::test_queries_and_keys_are_reordered_for_llama_cpp", "llama.cpp turns other channels"),
    ("gguf/configuration.py", "if each.name in _NOT_SAID or wanted == found:", "if True:",
     "gguf/test_gguf_families.py::test_what_would_come_back_as_another_model_is_refused",
     "a window is lost on the way into a GGUF file"),
    ("checkpoint/bases.py", "return catalogue.resolve(named)", "return Path(named)",
     "adapters/test_bases.py::test_the_base_is_opened_again", "a base is looked for as a folder alone"),
    ("gguf/tensors.py", "parts.append(part)", "parts.insert(0, part)",
     "gguf/test_gguf_families.py::test_a_family_comes_back_as_it_was", "experts are stacked the last first"),
    ("checkpoint/bases.py", "raise ValueError(_circle([*seen, at]))", "break",
     "adapters/test_peft.py::test_an_adapter_is_not_its_own_base", "an adapter is its own base, without end"),
    ("evals/generation.py", "*tokenizer.document_start, *tokenizer.encode(", "tokenizer.bos, *tokenizer.encode(",
     "evals/test_generation.py::test_few_shot_begins_as_the_models_texts_do", "a text begins with a bos that none has"),
    ("models/decoder.py", "self.through(self.embed(tokens),", "self.through(self.embedding(tokens),",
     "parity/test_transformers_models.py::test_logits_loss_and_gradients", "Gemma's embedding is not scaled"),
    ("gguf/container.py", "if num_bytes > self.size - self.position:", "if False:",
     "gguf/test_container.py::test_truncated_anywhere", "a header is believed"),
    ("catalogue.py", "if path.suffix in _PICKLES:", "if False:",
     "test_catalogue.py::test_pickles_and_loose_files_are_refused_with_the_way_out", "a pickle has no way out"),
    ("stages/memory.py", "in trained for _ in range(2)]", "in trained for _ in range(1)]",
     "stages/test_memory.py::test_supervised", "one of Adam's averages is forgotten"),

    # --- files ---
    ("runtime.py", 'descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")',
     "descriptor, name = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), str(path)",
     "test_runtime.py::test_atomic_write_leaves_the_old_file_on_failure", "a file is written in place"),
    ("models/weights.py", "missing = sorted(expected.keys() - state.keys())", "missing: list[str] = []",
     "checkpoint/test_loading.py::test_missing_and_extra_tensors_are_named", "a missing tensor stays random"),
    ("config.py", "    for key in rest:", "    for key in ():",
     "test_config.py", "an unknown option is ignored"),
    ("data/formats.py", '"pairs" if "prompt" in keys else "transcripts"', '"pairs"',
     "data/test_formats.py::test_detect_names_every_format_that_fits", "transcripts are taken for pairs"),
    ("data/formats.py", "if name != expected:", "if False:",
     "data/test_formats.py::test_mixed_formats_in_one_file_name_both_places", "a file may mix formats"),
    ("data/pack.py", "fitting = rooms >> size", "fitting = rooms >> size - 1 << 1",
     "data/test_pack.py::test_best_fit_by_hand", "a row is filled beyond its capacity"),
    ("data/pack.py", "(fitting & -fitting).bit_length()", "fitting.bit_length()",
     "data/test_pack.py::test_best_fit_packs_as_the_oracle_does", "the emptiest row is taken, not the fullest"),

    # --- evaluation ---
    ("evals/likelihood.py", 'len(text.encode("utf-8"))', "len(text)",
     "evals/test_likelihood.py::test_bytes_are_those_of_utf8", "bits per character, not per byte"),
    ("evals/intervals.py", "share + square / (2 * count)", "share",
     "evals/test_intervals.py::test_wilson_of_five_in_ten_is_the_textbook_interval",
     "Wilson's centre is not drawn to one half"),

    # --- adapters ---
    ("adapters/lora.py", "nn.init.zeros_(self.B.weight)", "nn.init.normal_(self.B.weight, std=0.01)",
     "adapters/test_adapters.py::test_fresh_is_the_base_bit_for_bit", "a fresh adapter changes the model"),
    ("adapters/lora.py", "self.B(low * self.scale)", "self.B(low)",
     "adapters/test_peft.py::test_trained_here_loads_in_peft", "LoRA's update is not scaled"),
    ("adapters/lora.py", "output if linear.bias is None else output - linear.bias", "output",
     "adapters/test_adapters.py::test_merged_is_attached_and_unmerged_is_the_base", "DoRA scales the bias"),
    ("adapters/config.py", "rank**0.5 if rslora else rank", "rank",
     "adapters/test_adapters.py::test_scale_is_alpha_by_rank_or_its_root", "rsLoRA is LoRA"),
    ("adapters/merge.py", "(linear.weight,) = lora.unmerged", "pass",
     "adapters/test_adapters.py::test_merged_is_attached_and_unmerged_is_the_base", "unmerging changes nothing"),
    ("adapters/attach.py", "if not parameter.requires_grad]", "]",
     "adapters/test_sharing.py::test_a_reward_adapter_is_put_on_the_policys_weights",
     "the critic trains the reward model's adapter"),
    ("adapters/layout.py", "ours[self.order.to(whole.device)] = whole", "ours.copy_(whole.flip(0))",
     "adapters/test_peft.py::test_trained_in_peft_loads_here_and_goes_back", "a fused update's rows are mixed up"),
    ("adapters/prefix.py", "permute(2, 1, 3, 0, 4)", "permute(2, 1, 3, 0, 4).flip(0)",
     "adapters/test_peft.py::test_trained_in_peft_loads_here_and_goes_back", "keys and values change places"),
    ("nn/prefixed.py", "places = places + self.num_tokens", "places = places + 0",
     "adapters/test_peft.py::test_trained_here_loads_in_peft", "the text begins at the prefix's positions"),
    ("nn/paged.py", "kept[:, blocks, :, : end - start] =", "kept[:, blocks[:1], :, : end - start] =",
     "adapters/test_adapters.py::test_generation_is_a_loop_of_full_forwards", "only the first row has a prefix"),
    ("train/state.py", "for name, parameter in module.named_parameters() if parameter.requires_grad}",
     "for name, parameter in module.named_parameters()}",
     "adapters/test_adapters.py::test_only_the_adapter_learns_and_checkpointing_changes_nothing",
     "checkpoints hold the frozen base too"),
    ("checkpoint/bases.py", "if saved.base.digest != digest:", "if False:",
     "adapters/test_peft.py::test_another_base_is_refused", "an adapter is put on another base"),
    ("rl/diagnostics.py", "if name in dormant:", "if False:",
     "adapters/test_sharing.py::test_ppo_with_lora_starts_at_the_reference_and_raises_a_known_reward",
     "a fresh adapter counts as another policy"),
))
# fmt: on


def main() -> int:
    """Run what the command line asks for; returns the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--list", action="store_true", help="show the breakages and run nothing")
    parser.add_argument("--only", type=int, nargs="+", metavar="N", help="run these numbers of the list alone")
    options = parser.parse_args()
    numbers: list[int] = options.only or list(range(1, len(BREAKAGES) + 1))
    if not 1 <= min(numbers) <= max(numbers) <= len(BREAKAGES):
        parser.error(f"--only is {options.only}; the numbers of --list go from 1 to {len(BREAKAGES)}")
    if options.list:
        for number in numbers:
            say(f"{number:3}  {place(number)}  {BREAKAGES[number - 1].reason}")
        return 0
    stale = [number for number in numbers if occurrences(BREAKAGES[number - 1]) != 1]
    for number in stale:
        each = BREAKAGES[number - 1]
        say(f"{number:3}  chatloom/{each.file} has {each.old!r} {occurrences(each)} times, not once; mend the table")
    if stale:
        return 1
    with tempfile.TemporaryDirectory(prefix="chatloom-mutate-") as folder:
        return run(numbers, Path(folder))


def run(numbers: list[int], copy: Path) -> int:
    """Copy, check that all is well unbroken, break one by one."""
    hidden = shutil.ignore_patterns("__pycache__", ".*")
    for name in ("chatloom", "tests"):
        shutil.copytree(ROOT / name, copy / name, ignore=hidden)
    shutil.copy(ROOT / "pyproject.toml", copy)
    imported = python(copy, "-c", "import chatloom; print(chatloom.__file__)").stdout.strip()
    if Path(imported).resolve() != (copy / "chatloom" / "__init__.py").resolve():
        say(f"tests would import {imported}, not the copy in {copy}")
        return 1
    selections = dict.fromkeys(BREAKAGES[number - 1].tests for number in numbers)
    say(f"unbroken: {len(selections)} selections of tests, in one run")
    sound = pytest(copy, list(selections))
    if sound.returncode != 0:
        say(sound.stdout[-4000:] + sound.stderr[-2000:])
        say("these fail although nothing is broken, so they could show nothing")
        return 1
    failures = []
    started = time.monotonic()
    for done, number in enumerate(numbers, 1):
        begun = time.monotonic()
        verdict = attempt(BREAKAGES[number - 1], copy)
        now = time.monotonic()
        left = (now - started) / done * (len(numbers) - done)
        say(
            f"{number:3}  {verdict:8}  {now - begun:5.1f} s  {place(number)}  {BREAKAGES[number - 1].reason}"
            f"  [{done} of {len(numbers)}, {left / 60:.1f} min left]"
        )
        if verdict != "caught":
            failures.append(number)
    say(f"{len(numbers) - len(failures)} of {len(numbers)} breakages were caught")
    for number in failures:
        each = BREAKAGES[number - 1]
        say(f"{number:3}  not caught by tests/{each.tests}: {each.reason}; `{each.old}` -> `{each.new}`")
    return 1 if failures else 0


def attempt(each: Breakage, copy: Path) -> str:
    """Break the copy, run the tests, mend it: "caught", "SURVIVED", or what else happened."""
    path = copy / "chatloom" / each.file
    whole = path.read_text(encoding="utf-8")
    path.write_text(whole.replace(each.old, each.new), encoding="utf-8")
    try:
        status = pytest(copy, [each.tests]).returncode
    finally:
        path.write_text(whole, encoding="utf-8")
    return {0: "SURVIVED", 1: "caught", HUNG: "HUNG"}.get(status, f"STATUS {status}")


def occurrences(each: Breakage) -> int:
    """How often the old text stands in the source."""
    return (ROOT / "chatloom" / each.file).read_text(encoding="utf-8").count(each.old)


def place(number: int) -> str:
    """File and line of a breakage, padded to a column."""
    each = BREAKAGES[number - 1]
    before = (ROOT / "chatloom" / each.file).read_text(encoding="utf-8").partition(each.old)[0]
    return f"{each.file}:{before.count(chr(10)) + 1}".ljust(28)


def pytest(copy: Path, selections: list[str]) -> subprocess.CompletedProcess[str]:
    """Run tests of the copy, up to the first that fails."""
    paths = [f"tests/{each}" for each in selections]
    return python(copy, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *paths)


def python(copy: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run this Python on the copy. It keeps no bytecode: that of a broken file could pass for the whole one's."""
    own = {"PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
    command, environment = [sys.executable, *arguments], {**os.environ, **own}
    try:
        return subprocess.run(
            command, cwd=copy, env=environment, capture_output=True, text=True, check=False, timeout=LIMIT
        )
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(command, HUNG, "", f"it took more than {LIMIT} seconds")


def say(line: str) -> None:
    """Show a line at once."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
