"""Divergences computed densely in float64, with everything materialised."""

import torch


THRESHOLD, TOP_K = 0.02, 5  # the demo teacher is hardly ever as unsure as EOPD's 0.8 nats


def entropy(logp_TV):
    return -(logp_TV.exp() * logp_TV).sum(dim=-1).detach()


def reverse_kl(student_TV, teacher_TV):
    return (student_TV.exp() * (student_TV - teacher_TV)).sum(dim=-1)


def dense_opd_full(rows):
    return torch.stack([reverse_kl(s, t).mean() for _, _, s, t in rows]).mean()


def dense_tip(rows, full=True):
    def scaled(values):
        joined = torch.cat(values)
        top = joined.quantile(0.98)
        low = joined.min()
        return [(value.clamp(max=top) - low) / (top - low) for value in values]

    unsure, far = scaled([entropy(s) for *_, s, _ in rows]), scaled([reverse_kl(s, t).detach() for *_, s, t in rows])
    losses = []
    for h, d, (_, _, s, t) in zip(unsure, far, rows, strict=True):
        kept = (h + d - h * d).argsort(descending=True, stable=True)[: max(1, len(h) // 2)]
        losses.append(reverse_kl(s, t)[kept].mean())
    return torch.stack(losses).mean()


def sampled(logp_TV, ids):
    return logp_TV.gather(1, ids.unsqueeze(1)).squeeze(1)


def dense_eopd(rows):
    losses = []
    for _, ids, s, t in rows:
        advantage = (sampled(t, ids) - sampled(s, ids)).detach()
        gradient = advantage * (sampled(s, ids) - sampled(s, ids).detach()).exp()
        top = t.topk(TOP_K, dim=1)
        forward_kl = (top.values.exp() * (top.values - s.gather(1, top.indices))).sum(dim=1)
        losses.append((-gradient + (entropy(t) > THRESHOLD) * forward_kl).mean())
    return torch.stack(losses).mean()


def dense_fire_full(rows):
    score = torch.stack([sampled(t, ids).mean() for _, ids, _, t in rows])
    kept = score.argsort()[int(0.2 * len(rows)) :].sort().values.tolist()
    rows = [rows[index] for index in kept]
    most_t, most_s = (max(entropy(row[side]).max() for row in rows) for side in (3, 2))
    losses = []
    for _, _, s, t in rows:
        weight = (1 + 1 - entropy(t) / most_t) * (1 + entropy(s) / most_s)
        losses.append((weight / weight.mean() * reverse_kl(s, t)).mean())
    return torch.stack(losses).mean()
