import torch

from unforge.nn.hrnet import Exchange, HRNet, resized


def test_branches_halve_from_the_finest() -> None:
    with torch.device("meta"):
        network = HRNet().eval()
        assert [tuple(x.shape[1:]) for x in network(torch.empty(1, 3, 33, 40))] == [
            (18, 33, 40), (36, 17, 20), (72, 9, 10), (144, 5, 5),
        ]  # fmt: skip
        halved = HRNet(strides=(2, 2)).eval()
        assert [x.shape[2:] for x in halved(torch.empty(1, 3, 64, 64))] == [(16, 16), (8, 8), (4, 4), (2, 2)]


def test_each_branch_takes_the_sum_of_all() -> None:
    exchange = Exchange((2, 3), depth=1, momentum=0.1).eval()
    fine, coarse = torch.rand(1, 2, 6, 6), torch.rand(1, 3, 3, 3)
    with torch.no_grad():
        found = exchange([fine, coarse])
        fine, coarse = exchange.branches[0](fine), exchange.branches[1](coarse)
        up, down = exchange.fuse_layers[0][1], exchange.fuse_layers[1][0]
        raised = torch.nn.functional.interpolate(up(coarse), size=(6, 6), mode="bilinear", align_corners=True)
        torch.testing.assert_close(found[0], (fine + raised).relu())
        torch.testing.assert_close(found[1], (down(fine) + coarse).relu())


def test_downward_ways_end_without_relu() -> None:
    way = Exchange((2, 3, 4), depth=1, momentum=0.1).fuse_layers[2][0]
    assert [[type(layer).__name__ for layer in step] for step in way] == [
        ["Conv2d", "BatchNorm2d", "ReLU"], ["Conv2d", "BatchNorm2d"],
    ]  # fmt: skip


def test_resizing_aligns_corners() -> None:
    x = torch.tensor([[0.0, 3.0], [6.0, 9.0]]).view(1, 1, 2, 2)
    expected = torch.tensor([[0.0, 1.0, 2.0, 3.0]])
    torch.testing.assert_close(resized(x, (2, 4))[0, 0, :1], expected)
    assert resized(x, (2, 2)) is x
