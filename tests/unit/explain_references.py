"""Relevance propagation written a second time, module by module and product by product, for a plain ViT of timm's.

It shares nothing with vitlab.explain: every product x_i w_ji is made, and every rule is applied to relevances as the
papers write it. Slow, and only for tiny models.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from timm.models import VisionTransformer


def tiny_vit(seed: int = 0, **changes):
    """A ViT of two blocks in float64 with weights large enough that no rule is trivial."""
    torch.manual_seed(seed)
    sizes = {"img_size": 16, "patch_size": 8, "embed_dim": 12, "depth": 2, "num_heads": 2, "num_classes": 5}
    model = VisionTransformer(**(sizes | changes)).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.3 + (0.5 if parameter.ndim == 1 else 0))
    return model


def forward(model, images):
    """Every intermediate value that a rule needs, and logits; attention keeps its gradient."""
    tokens = model.patch_embed(images)
    x = torch.cat([model.cls_token.expand(len(images), -1, -1), tokens], 1)
    values: dict = {"tokens": tokens, "joined": x}
    x = x + model.pos_embed
    values["embedded"] = x
    for i, block in enumerate(model.blocks):
        v: dict = {"x": x, "n1": block.norm1(x)}
        v["qkv"] = block.attn.qkv(v["n1"])
        batch, count, _ = x.shape
        q, k, value = v["qkv"].view(batch, count, 3, block.attn.num_heads, -1).permute(2, 0, 3, 1, 4)
        v["q"], v["k"], v["v"] = q, k, value
        v["scores"] = torch.einsum("bhid,bhjd->bhij", q, k) * block.attn.scale
        v["a"] = v["scores"].softmax(-1)
        v["a"].requires_grad_().retain_grad()
        v["av"] = torch.einsum("bhij,bhjd->bhid", v["a"], value)
        v["mixed"] = v["av"].transpose(1, 2).reshape(batch, count, -1)
        v["branch1"] = block.attn.proj(v["mixed"])
        v["middle"] = x + v["branch1"]
        v["n2"] = block.norm2(v["middle"])
        v["hidden"] = block.mlp.fc1(v["n2"])
        v["active"] = F.gelu(v["hidden"])
        v["branch2"] = block.mlp.fc2(v["active"])
        x = v["middle"] + v["branch2"]
        v["out"] = x
        values[i] = v
    values["normed"] = model.norm(x)
    values["logits"] = model.head(values["normed"][:, 0])
    return values


def linear_positive(x, weight, r):
    """αβ with α = 1: r_i = Σ_j (x_i w_ji)⁺ / Σ_i (x_i w_ji)⁺ r_j."""
    products = (x.unsqueeze(-2) * weight).clamp(min=0)  # (…, out, in)
    return (products / products.sum(-1, keepdim=True) * r.unsqueeze(-1)).sum(-2)


def add_conserving(a, b, r):
    ra, rb = a * r / (a + b), b * r / (a + b)
    out = []
    axes = tuple(range(1, r.ndim))
    sa, sb, total = (t.sum(axes, keepdim=True) for t in (ra, rb, r))
    for part, own in ((ra, sa), (rb, sb)):
        share = own.abs() / (sa.abs() + sb.abs()) * total
        out.append(part * share / own)
    return out


def chefer_relevances(model, images, classes):
    """(R of each layer's attention, gradient of each layer's attention, R of the embedded tokens), Chefer CVPR'21."""
    values = forward(model, images)
    one_hot = F.one_hot(classes, values["logits"].shape[1]).double()
    (values["logits"] * one_hot).sum().backward()
    relevances, gradients = {}, {}
    with torch.no_grad():
        r = torch.zeros_like(values["normed"])
        r[:, 0] = linear_positive(values["normed"][:, 0], model.head.weight, one_hot)
        for i in reversed(range(len(model.blocks))):
            v, block = values[i], model.blocks[i]
            skip, branch = add_conserving(v["middle"], v["branch2"], r)
            branch = linear_positive(v["active"], block.mlp.fc2.weight, branch)
            branch = linear_positive(v["n2"], block.mlp.fc1.weight, branch)
            r = skip + branch
            skip, branch = add_conserving(v["x"], v["branch1"], r)
            branch = linear_positive(v["mixed"], block.attn.proj.weight, branch)
            branch = branch.view(*branch.shape[:2], block.attn.num_heads, -1).transpose(1, 2)  # (B, H, N, d)
            products = v["a"].unsqueeze(-1) * v["v"].unsqueeze(-3)  # (B, H, i, j, d)
            parts = products / v["av"].unsqueeze(-2) * branch.unsqueeze(-2)
            relevances[i], gradients[i] = parts.sum(-1) / 2, v["a"].grad
            r_v = parts.sum(-3) / 2
            products = v["q"].unsqueeze(-2) * v["k"].unsqueeze(-3)  # (B, H, i, j, d)
            parts = products / products.sum(-1, keepdim=True) * relevances[i].unsqueeze(-1)
            r_qkv = torch.stack([parts.sum(-2) / 2, parts.sum(-3) / 2, r_v])  # (3, B, H, N, d)
            r_qkv = r_qkv.permute(1, 3, 0, 2, 4).flatten(2)
            r = skip + linear_positive(v["n1"], block.attn.qkv.weight, r_qkv)
    return relevances, gradients, r


def chefer_map(model, images, classes, start=0):
    """(B, gh gw): the class token's row of Π (I + mean_h (∇A R)⁺)."""
    relevances, gradients, _ = chefer_relevances(model, images, classes)
    joint = None
    for i in range(start, len(relevances)):
        layer = (relevances[i] * gradients[i]).clamp(min=0).mean(1)
        layer = layer + torch.eye(layer.shape[-1], dtype=layer.dtype)
        joint = layer if joint is None else layer @ joint
    assert joint is not None
    return joint[:, 0, 1:]


def attnlrp_pixels(model, images, classes):
    """(B, 3, H, W): relevance of the pixels by AttnLRP's rules, in relevances, biases absorbing their share."""
    values = forward(model, images)
    one_hot = F.one_hot(classes, values["logits"].shape[1]).double()

    def epsilon(x, weight, out, r):
        """r_i = Σ_j x_i w_ji / z_j r_j, z with the bias."""
        return (x.unsqueeze(-2) * weight * (r / out).unsqueeze(-1)).sum(-2)

    def norm(x, module, out, r):
        """LayerNorm with its deviation as a constant: y = D (x - mean x) + b."""
        size = x.shape[-1]
        centring = torch.eye(size, dtype=x.dtype) - 1 / size
        deviation = (x.var(-1, unbiased=False) + module.eps).sqrt()
        weight = module.weight.unsqueeze(-1) * centring / deviation[..., None, None]
        return (x.unsqueeze(-2) * weight * (r / out).unsqueeze(-1)).sum(-2)

    with torch.no_grad():
        seed = one_hot * values["logits"]
        r = torch.zeros_like(values["normed"])
        r[:, 0] = epsilon(values["normed"][:, 0], model.head.weight, values["logits"], seed)
        r = norm(values[len(model.blocks) - 1]["out"], model.norm, values["normed"], r)
        for i in reversed(range(len(model.blocks))):
            v, block = values[i], model.blocks[i]
            share = r / v["out"]
            branch = epsilon(v["active"], block.mlp.fc2.weight, v["branch2"], v["branch2"] * share)
            branch = epsilon(v["n2"], block.mlp.fc1.weight, v["hidden"], branch)  # GELU passes relevance
            r = v["middle"] * share + norm(v["middle"], block.norm2, v["n2"], branch)
            share = r / v["middle"]
            branch = epsilon(v["mixed"], block.attn.proj.weight, v["branch1"], v["branch1"] * share)
            branch = branch.view(*branch.shape[:2], block.attn.num_heads, -1).transpose(1, 2)
            parts = v["a"].unsqueeze(-1) * v["v"].unsqueeze(-3) / v["av"].unsqueeze(-2) * branch.unsqueeze(-2) / 2
            r_a, r_v = parts.sum(-1), parts.sum(-3)
            r_scores = v["scores"] * (r_a - v["a"] * r_a.sum(-1, keepdim=True))
            products = v["q"].unsqueeze(-2) * v["k"].unsqueeze(-3)
            parts = products / products.sum(-1, keepdim=True) * r_scores.unsqueeze(-1) / 2
            r_qkv = torch.stack([parts.sum(-2), parts.sum(-3), r_v]).permute(1, 3, 0, 2, 4).flatten(2)
            r_n = epsilon(v["n1"], block.attn.qkv.weight, v["qkv"], r_qkv)
            r = v["x"] * share + norm(v["x"], block.norm1, v["n1"], r_n)
        r = (values["joined"] * r / values["embedded"])[:, 1:]  # what is not the position embedding's
        weight = model.patch_embed.proj.weight.flatten(1)  # (D, 3 p p)
        side = model.patch_embed.proj.kernel_size[0]
        patches = F.unfold(images, side, stride=side).transpose(1, 2)
        r = epsilon(patches, weight, values["tokens"], r)
        return F.fold(r.transpose(1, 2), images.shape[-2:], side, stride=side)
